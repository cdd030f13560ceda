// Load of each expert in each layer, 1 for the mean expert; by expert, or each layer's experts from most to least.
moe.heat = (canvas, data) => {
  if (!data.heat) return;
  const panel = canvas.closest("section"), rows = data.heat.rows, fold = data.heat.fold, layers = data.heat_layers;
  const sorted = rows.map((row) => row.map((v, i) => [v, i]).sort((a, b) => b[0] - a[0]));
  const most = Math.max(1, ...rows.map((row) => Math.max(...row)));
  panel.querySelector("[data-heat-max]").textContent = most.toFixed(1);
  let byLoad = false, view = null;

  const colours = () => {
    const mix = ["light-dark(#f3f6fa, #161b22)", "light-dark(#8fb8de, #2d5f8f)", "light-dark(#0b4f8a, #63b3ff)", "light-dark(#041f3d, #e8f4ff)"];
    const span = document.createElement("span");
    document.body.append(span);
    const stops = mix.map((c) => { span.style.color = c; return getComputedStyle(span).color.match(/[\d.]+/g).slice(0, 3).map(Number); });
    span.remove();
    return (v) => {
      const at = Math.min(0.9999, v / most) * (stops.length - 1), i = Math.floor(at), t = at - i;
      return "rgb(" + stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * t)).join(",") + ")";
    };
  };
  const draw = () => {
    const high = Math.max(6, Math.min(26, Math.floor(520 / rows.length)));
    const { g, width } = moe.canvas(canvas, high * rows.length + 40);
    const left = 64, right = width - 6, wide = (right - left) / rows[0].length, colour = colours();
    g.textBaseline = "middle";
    const every = Math.ceil(14 / high);
    rows.forEach((row, r) => {
      row.forEach((_, e) => {
        const v = byLoad ? sorted[r][e][0] : row[e];
        g.fillStyle = colour(v);
        g.fillRect(left + e * wide, r * high, wide > 4 ? wide - 1 : wide + 0.5, high > 5 ? high - 1 : high);
      });
      if (r % every === 0) { g.fillStyle = moe.colour("soft"); g.textAlign = "right"; g.fillText("layer " + layers[r], left - 8, r * high + high / 2); }
    });
    g.fillStyle = moe.colour("soft");
    g.textAlign = "center";
    const step = Math.max(1, Math.ceil(rows[0].length / Math.floor((right - left) / 60)));
    for (let e = 0; e < rows[0].length; e += step) g.fillText(byLoad ? "#" + (e * fold + 1) : String(e * fold), left + (e + 0.5) * wide, rows.length * high + 12);
    g.fillText(byLoad ? "place by load" : "expert", (left + right) / 2, rows.length * high + 30);
    view = { left, wide, high };
  };
  const said = (r, e) => {
    const [v, expert] = byLoad ? sorted[r][e] : [rows[r][e], e];
    const name = fold > 1 ? "experts " + expert * fold + " to " + (expert * fold + fold - 1) : "expert " + expert;
    return "layer " + layers[r] + ", " + name + "\n" + v.toFixed(2) + " x the mean expert's tokens";
  };
  canvas.addEventListener("pointermove", (e) => {
    if (!view) return;
    const r = Math.floor(e.offsetY / view.high), x = Math.floor((e.offsetX - view.left) / view.wide);
    if (rows[r] && x >= 0 && x < rows[r].length) moe.tip(said(r, x), e.clientX, e.clientY); else moe.untip();
  });
  canvas.addEventListener("pointerleave", moe.untip);
  const flat = () => rows.length * rows[0].length;
  moe.keys(canvas, flat, (i) => {
    if (!view) return null;
    draw();
    if (i < 0) return null;
    const r = Math.floor(i / rows[0].length), x = i % rows[0].length, g = canvas.getContext("2d");
    g.strokeStyle = moe.colour("launch"); g.lineWidth = 2; g.strokeRect(view.left + x * view.wide, r * view.high, view.wide, view.high); g.lineWidth = 1;
    return { text: said(r, x), x: view.left + x * view.wide, y: r * view.high };
  });
  for (const button of panel.querySelectorAll("[data-heat]")) button.addEventListener("click", () => {
    byLoad = button.dataset.heat === "load";
    for (const other of panel.querySelectorAll("[data-heat]")) other.setAttribute("aria-pressed", String(other === button));
    draw();
  });
  moe.chart(canvas, draw);
};
