"use strict";
// What all charts share: the bulk data, number formats, colours of the current scheme, and the tooltip. Texts enter the page as
// text alone (textContent, fillText): nothing here makes HTML of a name.
const moe = { bulk: [], redraw: [], paper: false };

moe.unpack = async (run) => {
  if (moe.bulk[run]) return moe.bulk[run];
  const text = document.getElementById("bulk-" + run).textContent.trim();
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  moe.bulk[run] = JSON.parse(await new Response(stream).text());
  return moe.bulk[run];
};

const scaled = (value, unit, steps) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  if (value === 0) return "0";
  const [scale, prefix] = steps.find((s) => Math.abs(value) >= s[0]) || steps[steps.length - 1];
  return (value / scale).toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 }) + " " + prefix + unit;
};
const TIME = [[1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];
const SIZE = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
moe.seconds = (v) => scaled(v, "s", TIME);
moe.count = (v, unit) => scaled(v, unit, SIZE);
moe.percent = (v) => (v === null || !Number.isFinite(v) ? "-" : (100 * v).toFixed(1) + " %");
moe.tickTime = (v) => moe.seconds(v).replace(".0 ", " ");
moe.tickSize = (v, unit) => moe.count(v, unit).replace(".0 ", " ");

// Colours: a custom property made with light-dark() only resolves where it is used, so a probe uses it.
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
let colours = new Map();
moe.colour = (name) => {
  if (!colours.has(name)) {
    probe.style.color = "var(--" + name + ")";
    colours.set(name, getComputedStyle(probe).color);
  }
  return colours.get(name);
};
moe.repaint = () => {
  colours = new Map();
  for (const draw of moe.redraw) draw();
};

// A canvas as wide as its box, at the screen's own resolution; coordinates stay in CSS pixels.
moe.canvas = (canvas, height) => {
  const ratio = Math.max(1, window.devicePixelRatio || 1);
  const width = moe.paper ? 760 : Math.max(320, Math.round(canvas.parentElement.clientWidth || canvas.clientWidth));
  canvas.style.height = height + "px";
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  g.font = "12px system-ui, 'Liberation Sans', 'DejaVu Sans', sans-serif";
  return { g, width, height };
};

const tip = document.getElementById("tip");
moe.tip = (text, x, y) => {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - box.width - 12 : x + 14;
  const top = y + 16 + box.height > innerHeight ? y - box.height - 12 : y + 16;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, top) + "px";
};
moe.untip = () => { tip.hidden = true; };
document.addEventListener("pointermove", (e) => {
  const said = e.target.closest?.("[data-tip]");
  if (said) moe.tip(said.dataset.tip, e.clientX, e.clientY);
  else if (!e.target.closest?.("canvas.draw")) moe.untip();
});
document.addEventListener("scroll", moe.untip, { passive: true });

// A chart draws when it first comes near the screen, and again when its width or the colours change.
moe.chart = (canvas, draw) => {
  let shown = false;
  const again = () => { if (shown) draw(); };
  canvas.moeDraw = () => { shown = true; draw(); };
  new IntersectionObserver((seen, watch) => {
    if (seen.some((s) => s.isIntersecting)) { watch.disconnect(); canvas.moeDraw(); }
  }, { rootMargin: "400px" }).observe(canvas);
  moe.redraw.push(again);
};
// Arrow keys move through the items of a chart; `at` draws one as chosen and says where its tip goes.
moe.keys = (canvas, size, at) => {
  let place = -1;
  canvas.addEventListener("keydown", (e) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 }[e.key];
    if (e.key === "Escape") { place = -1; at(-1); moe.untip(); }
    if (move === undefined || size() === 0) return;
    e.preventDefault();
    place = Math.min(size() - 1, Math.max(0, place + move));
    const found = at(place);
    const box = canvas.getBoundingClientRect();
    if (found) moe.tip(found.text, box.left + found.x, box.top + found.y);
  });
  canvas.addEventListener("blur", () => { place = -1; at(-1); moe.untip(); });
};
