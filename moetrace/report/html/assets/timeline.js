// The steps in order, each cut by what its time went to; neighbours are drawn as one where there are more than pixels.
moe.timeline = (canvas, data) => {
  const PARTS = [["memory_s", "memory", "memory"], ["compute_s", "compute", "compute"], ["network_s", "network", "network"], ["fixed_s", "fixed", "fixed cost"],
    ["unexplained_s", "unexplained", "not explained"], ["launch_bound_s", "launch", "launch wait"], ["rest", "idle", "other idle"]];
  const s = data.steps;
  s.rest = s.idle_s.map((v, i) => Math.max(0, v - (s.launch_bound_s[i] || 0)));
  const panel = canvas.closest("section");
  const buttons = [...panel.querySelectorAll("[data-phase]")];
  let phase = Number((buttons.find((b) => b.getAttribute("aria-pressed") === "true") || buttons[0])?.dataset.phase ?? -1);
  let view = null;

  const quantile = (sorted, q) => {
    const at = q * (sorted.length - 1), low = Math.floor(at);
    return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
  };
  const bars = (chosen, room) => {
    const per = Math.max(1, Math.ceil(chosen.length / Math.max(1, Math.floor(room / 2))));
    const out = [];
    for (let i = 0; i < chosen.length; i += per) {
      const group = chosen.slice(i, i + per), worst = group.reduce((a, b) => (s.span_s[b] > s.span_s[a] ? b : a));
      out.push({ group, worst, parts: PARTS.map(([key]) => group.reduce((sum, j) => sum + (s[key][j] || 0), 0) / group.length) });
    }
    return out;
  };

  const draw = () => {
    const { g, width, height } = moe.canvas(canvas, 260);
    const chosen = s.index.map((_, i) => i).filter((i) => phase < 0 || s.phase[i] === phase);
    const left = 74, right = width - 8, top = 18, bottom = height - 34;
    const items = bars(chosen, right - left);
    if (!items.length) return;
    const spans = chosen.map((i) => s.span_s[i]).sort((a, b) => a - b);
    const median = quantile(spans, 0.5), q1 = quantile(spans, 0.25), q3 = quantile(spans, 0.75);
    const low = q1 - 1.5 * (q3 - q1), high = q3 + 1.5 * (q3 - q1);
    const most = spans[spans.length - 1], cap = Math.min(most, Math.max(4 * median, quantile(spans, 0.99))) * 1.06 || 1;
    const y = (v) => bottom - (Math.min(v, cap) / cap) * (bottom - top);
    g.textBaseline = "middle";
    const rough = cap / 5, base = 10 ** Math.floor(Math.log10(rough)), tick = [1, 2, 5, 10].map((m) => m * base).find((v) => v >= rough);
    for (let v = 0; v <= cap; v += tick) {
      g.strokeStyle = moe.colour("grid"); g.beginPath(); g.moveTo(left, y(v)); g.lineTo(right, y(v)); g.stroke();
      g.fillStyle = moe.colour("soft"); g.textAlign = "right"; g.fillText(v ? moe.tickTime(v) : "0", left - 8, y(v));
    }
    const slot = (right - left) / items.length, gap = slot > 6 ? Math.min(8, slot * 0.15) : 0, wide = Math.min(slot - gap, 64);
    g.fillStyle = moe.colour("hit");
    const p10 = quantile(spans, 0.1), p90 = quantile(spans, 0.9);
    if (phase >= 0) g.fillRect(left, y(p90), right - left, Math.max(1, y(p10) - y(p90)));
    items.forEach((item, i) => {
      const x = left + i * slot + (slot - wide) / 2;
      item.x = x; item.wide = wide;
      let at = 0;
      PARTS.forEach(([, colour], p) => {
        const v = item.parts[p];
        if (v > 0) { g.fillStyle = moe.colour(colour); g.fillRect(x, y(at + v), wide, Math.max(0, y(at) - y(at + v))); }
        at += v;
      });
      const far = s.span_s[item.worst];
      if (chosen.length > 4 && phase >= 0 && (far > high || far < low)) {
        g.fillStyle = moe.colour("ink"); g.beginPath();
        const tipY = Math.max(top, y(far)) - 4;
        g.moveTo(x + wide / 2, tipY); g.lineTo(x + wide / 2 - 4, tipY - 7); g.lineTo(x + wide / 2 + 4, tipY - 7); g.fill();
      }
    });
    if (phase >= 0) {
      g.strokeStyle = moe.colour("ink"); g.setLineDash([5, 4]); g.beginPath(); g.moveTo(left, y(median)); g.lineTo(right, y(median)); g.stroke(); g.setLineDash([]);
      const label = "median " + moe.seconds(median), w = g.measureText(label).width;
      g.fillStyle = moe.colour("panel"); g.globalAlpha = 0.85; g.fillRect(right - w - 10, y(median) - 19, w + 8, 16); g.globalAlpha = 1;
      g.fillStyle = moe.colour("ink"); g.textAlign = "right"; g.fillText(label, right - 6, y(median) - 11);
    }
    g.fillStyle = moe.colour("soft"); g.textAlign = "center";
    const every = Math.max(1, Math.ceil(items.length / Math.floor((right - left) / 70)));
    items.forEach((item, i) => { if (i % every === 0) g.fillText(String(s.index[item.group[0]]), item.x + wide / 2, bottom + 12); });
    g.fillText("step" + (items[0].group.length > 1 ? " (a bar is the mean of " + items[0].group.length + ", its triangle the worst)" : ""), (left + right) / 2, height - 7);
    view = { items, left, right, slot, y, most, cap };
  };

  const said = (item) => {
    const n = item.group.length, i = item.worst;
    const head = n > 1 ? "steps " + s.index[item.group[0]] + " to " + s.index[item.group[n - 1]] + ", mean" : "step " + s.index[i] + " (" + s.phases[s.phase[i]] + ")";
    const total = item.parts.reduce((a, b) => a + b, 0);
    const lines = PARTS.map(([, , word], p) => [word, item.parts[p]]).filter(([, v]) => v > 0.0005 * total).map(([word, v]) => word + ": " + moe.seconds(v) + ", " + moe.percent(v / total));
    const more = n > 1 ? ["longest: step " + s.index[i] + ", " + moe.seconds(s.span_s[i])] : ["expected " + moe.seconds(s.expected_s[i]) + ", lower bound " + moe.seconds(s.lower_bound_s[i])].concat(s.tokens[i] ? [s.tokens[i].toLocaleString("en-US") + " tokens"] : []);
    return [head + ": " + moe.seconds(total), ...lines, ...more].join("\n");
  };
  canvas.addEventListener("pointermove", (e) => {
    if (!view) return;
    const item = view.items[Math.floor((e.offsetX - view.left) / view.slot)];
    if (item && e.offsetX >= view.left) moe.tip(said(item), e.clientX, e.clientY); else moe.untip();
  });
  canvas.addEventListener("pointerleave", moe.untip);
  moe.keys(canvas, () => (view ? view.items.length : 0), (i) => {
    if (!view) return null;
    draw();
    if (i < 0) return null;
    const item = view.items[i], g = canvas.getContext("2d");
    g.strokeStyle = moe.colour("ink"); g.lineWidth = 2; g.strokeRect(item.x - 1, 19, Math.max(4, item.wide + 2), 206); g.lineWidth = 1;
    return { text: said(item), x: item.x + item.wide, y: 60 };
  });
  for (const button of buttons) button.addEventListener("click", () => {
    phase = Number(button.dataset.phase);
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    draw();
  });
  moe.chart(canvas, draw);
};
