// Wires the page: charts of the run that is shown, tables, run chooser, colours, keys, printing.
const started = new Set();
moe.start = async (run) => {
  if (started.has(run)) return;
  started.add(run);
  const article = document.getElementById("r" + run);
  for (const panel of article.querySelectorAll("section")) if (panel.querySelector(".tabset")) moe.tabs(panel);
  const data = await moe.unpack(run);
  const made = { timeline: moe.timeline, roofline: moe.roofline, heat: moe.heat };
  for (const canvas of article.querySelectorAll("canvas[data-chart]")) made[canvas.dataset.chart](canvas, data);
  article.dataset.ready = "true";
};

for (const table of document.querySelectorAll("table.sort")) moe.sortable(table);

const articles = [...document.querySelectorAll("article.run")];
const show = (run) => {
  for (const article of articles) article.hidden = article.dataset.run !== String(run);
  for (const link of document.querySelectorAll("[data-section]")) link.href = "#r" + run + "-" + link.dataset.section;
  moe.start(run);
};
document.getElementById("pick")?.addEventListener("change", (e) => show(Number(e.target.value)));

const theme = document.getElementById("theme"), root = document.documentElement;
const schemes = ["system", "light", "dark"];
let scheme = 0;
const recolour = () => {
  scheme = (scheme + 1) % schemes.length;
  if (scheme) root.dataset.theme = schemes[scheme]; else delete root.dataset.theme;
  theme.textContent = "Colours: " + schemes[scheme];
  moe.repaint();
};
theme.addEventListener("click", recolour);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", moe.repaint);

// Paper is light: charts are drawn anew for it, also those that were never on the screen.
const drawAll = () => { for (const canvas of document.querySelectorAll("article:not([hidden]) canvas[data-chart]")) canvas.moeDraw?.(); };
let kept;
addEventListener("beforeprint", () => { kept = root.dataset.theme; root.dataset.theme = "light"; moe.paper = true; moe.repaint(); drawAll(); });
addEventListener("afterprint", () => { if (kept) root.dataset.theme = kept; else delete root.dataset.theme; moe.paper = false; moe.repaint(); });
document.getElementById("print").addEventListener("click", () => print());

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, select, textarea")) return;
  if (e.key === "d") recolour();
  if (e.key === "p") print();
  if (e.key === "/") {
    e.preventDefault();
    document.querySelector("article:not([hidden]) [data-filter]")?.focus();
  }
});

let resizing = 0;
addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(moe.repaint); });
const here = new IntersectionObserver((seen) => {
  for (const s of seen) if (s.isIntersecting) for (const link of document.querySelectorAll("[data-section]")) link.classList.toggle("on", s.target.id.endsWith("-" + link.dataset.section));
}, { rootMargin: "-20% 0px -70% 0px" });
for (const section of document.querySelectorAll("article section")) here.observe(section);

requestAnimationFrame(() => setTimeout(() => { root.classList.add("ready"); show(0); }, 0));
