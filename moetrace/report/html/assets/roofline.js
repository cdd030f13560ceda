// Every distinct op on log axes. Points are drawn once; hovering asks a grid of cells, so 100,000 of them stay quick.
moe.roofline = (canvas, data) => {
  const p = data.points, machine = data.machine, n = p.count.length;
  const panel = canvas.closest("section"), over = panel.querySelector(".over");
  const lines = new Array(n), off = new Set();
  const text = (name, i) => (p[name][i] < 0 ? null : p.texts[name][p[name][i]]);
  const all = p.total_s.reduce((a, b) => a + b, 0) || 1;
  let match = () => true, shown = [], view = null;
  const CELL = 24;

  const line = (i) => (lines[i] ??= [text("op", i), text("kernel", i), text("family", i), text("phase", i), text("bound", i)].join(" ").toLowerCase());
  const pick = () => {
    shown = [];
    let time = 0;
    for (let i = 0; i < n; i++) {
      if (p.bytes[i] === null || !(p.median_s[i] > 0) || off.has(p.family[i]) || !match(line(i))) continue;
      shown.push(i);
      time += p.total_s[i];
    }
    panel.querySelector("[data-count]").textContent = shown.length.toLocaleString("en-US") + " of " + n.toLocaleString("en-US") + " ops shown, " + moe.percent(time / all) + " of the ops' time";
  };
  const lane = (i) => !(p.flops[i] > 0) || !(p.bytes[i] > 0);

  const range = (values, low, high) => {
    let a = low, b = high;
    for (const v of values) if (v > 0) { if (v < a) a = v; if (v > b) b = v; }
    return [Math.floor(Math.log10(a)), Math.ceil(Math.log10(b))];
  };
  const draw = () => {
    pick();
    const { g, width, height } = moe.canvas(canvas, 460);
    const known = []; for (let i = 0; i < n; i++) if (p.bytes[i] !== null && p.median_s[i] > 0) known.push(i);
    const peak = Math.max(...Object.values(machine.peaks)), bw = machine.bytes_per_s;
    const ridge = peak / bw;
    const [x0, x1] = range(known.filter((i) => !lane(i)).map((i) => p.flops[i] / p.bytes[i]), Math.min(0.1, ridge / 10), ridge * 10);
    const [y0, y1] = range(known.filter((i) => !lane(i)).map((i) => p.flops[i] / p.median_s[i]), peak / 1e4, peak * 1.2);
    const [b0, b1] = range(known.filter(lane).map((i) => p.bytes[i] / p.median_s[i]), bw / 1e3, bw * 2);
    const laneLeft = 78, laneRight = 176, left = 268, right = width - 172, top = 14, bottom = height - 44;
    const X = (v) => left + (Math.log10(v) - x0) / (x1 - x0) * (right - left);
    const Y = (v) => bottom - (Math.log10(v) - y0) / (y1 - y0) * (bottom - top);
    const B = (v) => bottom - (Math.log10(v) - b0) / (b1 - b0) * (bottom - top);
    g.textBaseline = "middle";
    g.lineWidth = 1;
    const rule = (x, y, u, v) => { g.beginPath(); g.moveTo(x, y); g.lineTo(u, v); g.stroke(); };
    g.strokeStyle = moe.colour("grid");
    g.fillStyle = moe.colour("soft");
    g.textAlign = "right";
    for (let e = y0; e <= y1; e++) { rule(left, Y(10 ** e), right, Y(10 ** e)); g.fillText(moe.tickSize(10 ** e, "FLOP/s"), left - 8, Y(10 ** e)); }
    for (let e = b0; e <= b1; e++) { rule(laneLeft, B(10 ** e), laneRight, B(10 ** e)); g.fillText(moe.tickSize(10 ** e, "B/s"), laneLeft - 8, B(10 ** e)); }
    g.textAlign = "center";
    for (let e = x0; e <= x1; e++) { rule(X(10 ** e), top, X(10 ** e), bottom); g.fillText(e >= 0 && e < 6 ? (10 ** e).toLocaleString("en-US") : String(10 ** e), X(10 ** e), bottom + 14); }
    g.fillText("arithmetic intensity, FLOP per byte of memory", (left + right) / 2, height - 10);
    g.fillText("no FLOPs", (laneLeft + laneRight) / 2, bottom + 14);
    // The roofs: one slope, one ceiling per dtype; equal peaks share a label.
    g.strokeStyle = moe.colour("ink"); g.fillStyle = moe.colour("ink"); g.lineWidth = 1.6;
    const start = Math.max(10 ** x0, 10 ** y0 / bw);
    rule(X(start), Y(start * bw), X(ridge), Y(peak));
    rule(laneLeft, B(bw), laneRight, B(bw));
    const peaks = new Map();
    for (const [name, value] of Object.entries(machine.peaks)) peaks.set(value, [...(peaks.get(value) || []), name]);
    g.textAlign = "left";
    let last = -99;
    for (const [value, names] of [...peaks].sort((a, b) => b[0] - a[0])) {
      if (value < 10 ** y0) continue;
      g.globalAlpha = value === peak ? 1 : 0.55;
      rule(X(value / bw), Y(value), right, Y(value));
      g.globalAlpha = 1;
      const y = Math.max(Y(value), last + 15);
      g.fillText(names.join(", ") + " " + moe.count(value, "FLOP/s"), right + 8, y);
      last = y;
    }
    g.textAlign = "left";
    const mid = Math.sqrt(start * ridge), angle = Math.atan2(Y(mid * 2 * bw) - Y(mid * bw), X(mid * 2) - X(mid));
    g.save(); g.translate(X(mid), Y(mid * bw)); g.rotate(angle); g.textAlign = "center"; g.fillText(moe.count(bw, "B/s"), 0, -9); g.restore();
    g.lineWidth = 1;
    // The points, most time last so that they lie on top; a grid of cells for finding them again.
    const cells = new Map(), many = shown.length > 5000, max = many ? 9 : 17;
    view = { x: new Float32Array(n), y: new Float32Array(n), r: new Float32Array(n), cells };
    const whole = new Map(); // the longest of each phase: a prefill must not dwarf the decode
    for (const i of shown) whole.set(p.phase[i], Math.max(whole.get(p.phase[i]) || 0, p.total_s[i]));
    for (let k = shown.length - 1; k >= 0; k--) {
      const i = shown[k], r = Math.max(many ? 1.3 : 2.6, max * Math.sqrt(p.total_s[i] / whole.get(p.phase[i])));
      let x, y;
      if (lane(i)) { const rate = p.bytes[i] / p.median_s[i]; x = laneLeft + 12 + ((i * 61) % 74); y = rate > 0 ? B(rate) : bottom; }
      else { x = X(p.flops[i] / p.bytes[i]); y = Y(p.flops[i] / p.median_s[i]); }
      view.x[i] = x; view.y[i] = y; view.r[i] = r;
      g.fillStyle = moe.colour((p.classes[p.family[i]] || "f-other").slice(2));
      g.globalAlpha = many ? 0.55 : 0.72;
      if (text("phase", i) === "prefill") g.fillRect(x - r * 0.88, y - r * 0.88, r * 1.76, r * 1.76);
      else { g.beginPath(); g.arc(x, y, r, 0, 6.2832); g.fill(); }
      if (!many) { g.globalAlpha = 1; g.strokeStyle = moe.colour("panel"); g.stroke(); }
      const key = Math.floor(x / CELL) * 4096 + Math.floor(y / CELL);
      const cell = cells.get(key);
      if (cell) cell.push(i); else cells.set(key, [i]);
    }
    g.globalAlpha = 1;
    mark(-1);
  };

  const mark = (i) => {
    const { g } = moe.canvas(over, 460);
    if (i < 0 || !view) return;
    g.strokeStyle = moe.colour("ink"); g.lineWidth = 2; g.beginPath(); g.arc(view.x[i], view.y[i], view.r[i] + 3, 0, 6.2832); g.stroke();
  };
  const nearest = (x, y) => {
    let best = -1, least = 26 * 26;
    const cx = Math.floor(x / CELL), cy = Math.floor(y / CELL);
    for (let a = cx - 1; a <= cx + 1; a++) for (let b = cy - 1; b <= cy + 1; b++) for (const i of view.cells.get(a * 4096 + b) || []) {
      const dx = view.x[i] - x, dy = view.y[i] - y, d = Math.max(0, Math.sqrt(dx * dx + dy * dy) - view.r[i]) ** 2;
      if (d < least || (d === least && best >= 0 && view.r[i] < view.r[best])) { least = d; best = i; }
    }
    return best;
  };
  const said = (i) => {
    const rate = p.flops[i] > 0 ? moe.count(p.flops[i] / p.median_s[i], "FLOP/s") + ", " : "";
    const expected = p.expected_s[i] === null ? "no expectation" : "expected " + moe.seconds(p.expected_s[i]) + " (80 % within a factor " + (1 + p.error[i]).toFixed(2) + "), lower bound " + moe.seconds(p.lower_s[i]);
    return [text("op", i), (text("phase", i) || "no phase") + ", " + text("family", i) + ": " + p.count[i].toLocaleString("en-US") + " x, " + moe.seconds(p.total_s[i]) + " in all (" + moe.percent(p.total_s[i] / all) + "), median " + moe.seconds(p.median_s[i]),
      moe.count(p.bytes[i], "B") + (p.flops[i] > 0 ? ", " + moe.count(p.flops[i], "FLOP") + ", " + (p.flops[i] / p.bytes[i]).toPrecision(3) + " FLOP/byte" : ", no FLOPs"),
      "achieved " + rate + moe.count(p.bytes[i] / p.median_s[i], "B/s"), expected, "bound: " + (text("bound", i) || "not known") + (text("flag", i) ? " (" + text("flag", i) + ")" : ""),
      "kernel: " + text("kernel", i), "coefficients: " + (text("provenance", i) || "none")].join("\n");
  };
  canvas.addEventListener("pointermove", (e) => {
    if (!view) return;
    const i = nearest(e.offsetX, e.offsetY);
    mark(i);
    if (i >= 0) moe.tip(said(i), e.clientX, e.clientY); else moe.untip();
  });
  canvas.addEventListener("pointerleave", () => { mark(-1); moe.untip(); });
  moe.keys(canvas, () => shown.length, (k) => {
    mark(k < 0 ? -1 : shown[k]);
    return k < 0 || !view ? null : { text: said(shown[k]), x: view.x[shown[k]], y: view.y[shown[k]] };
  });

  const chips = panel.querySelector("[data-chips]"), present = new Set(p.family);
  p.texts.family.forEach((name, f) => {
    if (!present.has(f)) return;
    const chip = document.createElement("button"), dot = document.createElement("i");
    chip.type = "button";
    chip.setAttribute("aria-pressed", "true");
    dot.className = "dot " + (p.classes[f] || "f-other");
    chip.append(dot, name);
    chip.addEventListener("click", () => {
      if (!off.delete(f)) off.add(f);
      chip.setAttribute("aria-pressed", String(!off.has(f)));
      draw();
    });
    chips.append(chip);
  });
  const input = panel.querySelector("[data-filter]");
  let waiting = 0;
  input.addEventListener("input", () => {
    match = moe.matcher(input.value);
    for (const row of panel.querySelectorAll("[data-filtered] tbody tr")) row.hidden = !match(row.textContent.toLowerCase());
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  });
  pick();
  moe.chart(canvas, draw);
};
