// Tables: a heading sorts (numbers by data-v, else by text), a filter hides rows; tabs choose one of a set.
moe.sortable = (table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button";
    while (th.firstChild) button.append(th.firstChild);
    th.append(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") ? th.getAttribute("aria-sort") === "ascending" : th.classList.contains("num");
      for (const other of heads) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        if (!cell) return "";
        return cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent.trim();
      };
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
      if (down) rows.reverse();
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
};

moe.matcher = (text) => {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (line) => words.every((w) => line.includes(w));
};

moe.tabs = (panel) => {
  const chosen = {};
  for (const group of panel.querySelectorAll("[data-set]")) {
    const pressed = group.querySelector("[aria-pressed=true]") || group.querySelector("button");
    chosen[group.dataset.set] = pressed.dataset.value;
    for (const button of group.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        chosen[group.dataset.set] = button.dataset.value;
        for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
        const set = panel.querySelector(".tabset");
        const wanted = set.dataset.prefix + "-" + chosen.phase + "-" + chosen.by;
        for (const tab of set.querySelectorAll(".tab")) tab.hidden = tab.id !== wanted;
      });
    }
  }
};
