// The main chart: loss against compute, drawn anew at every width, with hover, zoom and the choice of
// the size convention. It replaces the static figure, which stays for readers without scripts.
// `note` tells what leaving runs out moves; `kept` is what the reader chose in an earlier drawing.
const lossChart = (host, data, note, kept) => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg"; // a name, not an address: nothing is fetched
  // out: ids of runs left out by the reader; outRungs: sizes left out whole.
  const state = kept ?? { view: 0, zoom: null, out: new Set(), outRungs: new Set() };

  const make = (tag, attributes = {}, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const html = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // Numbers as the tables write them.
  const trim = (x, digits) => String(Number(x.toPrecision(digits)));
  const si = (x) => {
    for (const [factor, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
      if (Math.abs(x) >= factor * 0.9995) return trim(x / factor, 3) + suffix;
    return trim(x, 3);
  };
  const raised = (n) => [...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[+c])).join("");
  const power = (x) => {
    let exponent = Math.floor(Math.log10(x) + 1e-9);
    let front = Number((x / 10 ** exponent).toPrecision(3));
    if (front === 10) { front = 1; exponent += 1; }
    return (front === 1 ? "" : front + "·") + "10" + raised(exponent);
  };

  const logTicks = (low, high, most) => {
    let inside = [];
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      inside = [];
      for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++)
        for (const s of steps) {
          const tick = s * 10 ** d;
          if (tick >= low * 0.999 && tick <= high * 1.001) inside.push(tick);
        }
      if (inside.length <= most) return inside;
    }
    const stride = Math.ceil(inside.length / most);
    return inside.filter((_, i) => i % stride === 0);
  };
  const evenTicks = (low, high, most) => {
    const span = high - low;
    const unit = 10 ** Math.floor(Math.log10(span / most));
    const step = [1, 2, 5, 10].map((f) => f * unit).find((s) => span / s <= most);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high * (1 + 1e-12); k++)
      ticks.push(Number((k * step).toPrecision(10)));
    return ticks;
  };
  const padded = (values, share) => {
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    const pad = high > low ? (high / low) ** share : 1.05;
    return [low / pad, high * pad];
  };
  const scale = ([low, high], [from, to]) => {
    const a = Math.log(low), b = Math.log(high);
    const map = (x) => from + ((Math.log(x) - a) / (b - a)) * (to - from);
    map.invert = (p) => Math.exp(a + ((p - from) / (to - from)) * (b - a));
    return map;
  };

  // Each view has the runs with their size in its own convention; the hold-out was made in the first.
  data.views.forEach((view, index) => {
    view.points = data.points.map((point) => ({
      ...point,
      size: point.sizes[view.key] ?? null,
      low: index === 0 ? point.low : null,
      high: index === 0 ? point.high : null,
    }));
    // Fitted runs that are not drawn, where a sweep has more than an eye can tell apart.
    const rest = data.rest, size = rest.sizes[view.key] ?? [];
    view.rest = size.map((n, i) => ({
      size: n, tokens: rest.tokens[i], loss: rest.loss[i], rung: data.rungs[rest.rung[i]].name,
    }));
  });
  const view = () => data.views[state.view];
  const marks = () => {
    const shown = view().points.map((point) => ({ ...point, kind: "run" }));
    const promoted = view().promoted;
    if (promoted) shown.push({ ...promoted, kind: "promoted" });
    return shown;
  };
  const extent = () => {
    if (state.zoom) return state.zoom;
    const all = view().points, law = view().law, promoted = view().promoted;
    const c = all.map((p) => p.flops).concat(law ? law.flops : [], promoted ? [promoted.flops] : []);
    const l = all.map((p) => p.loss)
      .concat(law ? law.loss : []) // not its band, which may be wider than any page
      .concat(promoted ? [promoted.low, promoted.high, promoted.measured ?? promoted.loss] : []);
    return { x: padded(c, 0.03), y: padded(l, 0.05) };
  };

  // The law without the runs left out; null where nothing is, or too little is left.
  const enough = (points) =>
    points.length > 6 && ["size", "tokens"].every((k) => new Set(points.map((p) => p[k])).size > 1);
  // Fitted again only when the runs or the convention change, not for a zoom or another width.
  let known = { of: "", change: null };
  function moved() {
    const of = `${state.view} ${[...state.outRungs].join()} ${[...state.out].join()}`;
    if (known.of !== of) known = { of, change: movedNow() };
    return known.change;
  }
  function movedNow() {
    const fitted = view().points.filter((point) => point.fitted).concat(view().rest);
    const left = fitted.filter((point) =>
      !(point.id === undefined ? state.outRungs.has(point.rung) : state.out.has(point.id)));
    if (!view().fit || left.length === fitted.length) return { gone: 0, law: null };
    const law = enough(left) ? refit(left, view().fit) : null;
    return { gone: fitted.length - left.length, law };
  }
  const lossAt = (law, size, tokens) =>
    law.E + law.A * size ** -law.alpha + law.B * tokens ** -law.beta;
  // With C = k·N·D fixed, dL/dN = 0 gives N = G·(C/k)^(beta/(alpha+beta)).
  function lossAlong(law, flops) {
    const total = law.alpha + law.beta;
    const balance = ((law.alpha * law.A) / (law.beta * law.B)) ** (1 / total);
    const ratio = flops / view().fit.flops_per_size_token;
    const size = balance * ratio ** (law.beta / total);
    return lossAt(law, size, ratio / size);
  }

  function tellMoved({ gone, law }) {
    if (!gone) { note.textContent = ""; return; }
    const runs = gone === 1 ? "1 run" : `${gone} runs`;
    if (!law) { note.textContent = `Without ${runs} too little is left to fit a law.`; return; }
    const before = view().fit.parameters, target = view().promoted;
    const parts = [];
    if (target) {
      const now = lossAt(law, target.size, target.tokens);
      const change = 100 * (now / target.loss - 1);
      parts.push(`forecast ${now.toFixed(4)}, with all runs ${target.loss.toFixed(4)} (${
        change < 0 ? "−" : "+"}${Math.abs(change).toFixed(2)}%)`);
    }
    for (const name of ["E", "alpha", "beta"])
      parts.push(`${name} ${trim(law[name], 3)}, was ${trim(before[name], 3)}`);
    note.textContent = `Without ${runs}: ${parts.join("; ")}.`;
    note.dataset.law = JSON.stringify(law);
  }

  const stage = html("div", "chart-stage");
  const tip = html("div", "tip");
  tip.hidden = true;
  tip.setAttribute("role", "status");
  const bar = html("div", "chart-bar");
  const reset = html("button", "quiet", "Reset zoom");
  reset.type = "button";
  reset.hidden = true;
  let geometry = null;

  function draw() {
    const width = Math.max(280, stage.clientWidth);
    const height = Math.round(Math.min(520, Math.max(300, width * 0.56)));
    const box = { left: 50, right: width - 10, top: 10, bottom: height - 46 };
    const { x: xr, y: yr } = extent();
    const x = scale(xr, [box.left, box.right]), y = scale(yr, [box.bottom, box.top]);
    const svg = make("svg", {
      viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
      "aria-label": "Loss against training compute",
    });
    const clip = make("clipPath", { id: "chart-clip" });
    clip.append(make("rect", {
      x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top,
    }));
    svg.append(clip);
    drawAxes(svg, box, x, y, xr, yr, width);
    const inside = make("g", { "clip-path": "url(#chart-clip)" });
    svg.append(inside);
    const change = moved();
    drawLaw(inside, x, y);
    drawRungs(inside, x, y);
    if (change.law) drawMoved(inside, x, y, change.law);
    const drawn = drawMarks(inside, x, y);
    tellMoved(change);
    stage.replaceChildren(svg, tip);
    geometry = { svg, box, x, y, drawn, width, height };
    reset.hidden = !state.zoom;
  }

  function drawAxes(svg, box, x, y, xr, yr, width) {
    const yTicks = yr[1] / yr[0] < 8 ? evenTicks(...yr, 12) : logTicks(...yr, 8);
    for (const tick of yTicks) {
      svg.append(make("line", {
        class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick),
      }));
      svg.append(make("text", { class: "tick end", x: box.left - 8, y: y(tick) + 4 }, trim(tick, 6)));
    }
    for (const tick of logTicks(...xr, width < 500 ? 5 : 9)) {
      svg.append(make("line", {
        class: "axis", x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 4,
      }));
      svg.append(make("text", { class: "tick mid", x: x(tick), y: box.bottom + 18 }, power(tick)));
    }
    svg.append(make("path", {
      class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`,
    }));
    svg.append(make("text", {
      class: "label mid", x: (box.left + box.right) / 2, y: box.bottom + 39,
    }, "Training compute, FLOPs"));
    svg.append(make("text", {
      class: "label mid", transform: `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)`,
    }, "Held-out loss, nats per token"));
  }

  const path = (xs, ys, x, y) =>
    xs.map((c, i) => `${i ? "L" : "M"}${x(c).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("");

  function drawLaw(group, x, y) {
    const law = view().law;
    if (!law) return;
    const back = path([...law.flops].reverse(), [...law.high].reverse(), x, y).replace("M", "L");
    group.append(make("path", { class: "band", d: path(law.flops, law.low, x, y) + back + "Z" }));
    const cut = law.flops.findLastIndex((c) => c <= law.measured_to * 1.0000001) + 1;
    group.append(make("path", {
      class: "law", d: path(law.flops.slice(0, cut), law.loss.slice(0, cut), x, y),
    }));
    group.append(make("path", {
      class: "law beyond",
      d: path(law.flops.slice(cut - 1), law.loss.slice(cut - 1), x, y),
    }));
  }

  function drawRungs(group, x, y) {
    for (const line of view().lines) {
      group.append(make("path", {
        class: "rung", style: `stroke:var(--${line.color})`, d: path(line.flops, line.loss, x, y),
      }));
    }
  }

  function drawMoved(group, x, y, law) {
    const flops = view().law.flops;
    group.append(make("path", {
      class: "moved", d: path(flops, flops.map((c) => lossAlong(law, c)), x, y),
    }));
    const target = view().promoted;
    if (!target) return;
    const cy = y(lossAt(law, target.size, target.tokens));
    group.append(make("path", { class: "moved-point", d: `M${x(target.flops) - 9} ${cy}h18` }));
  }

  function drawMarks(group, x, y) {
    const drawn = [];
    for (const mark of marks()) {
      const cx = x(mark.flops);
      const cy = y(mark.kind === "promoted" ? mark.measured ?? mark.loss : mark.loss);
      if (mark.low !== undefined && mark.low !== null) drawInterval(group, mark, cx, y);
      let node = null;
      if (mark.kind === "run" && mark.excluded)
        node = make("path", { class: "excluded", d: `M${cx - 4} ${cy - 4}l8 8m0 -8l-8 8` });
      else if (mark.kind === "run")
        node = make("circle", {
          class: mark.low === null ? "dot" : "dot hollow", cx, cy, r: 4.2,
          style: `--c:var(--${mark.color})`,
        });
      else if (mark.measured !== null)
        node = make("path", { class: "measured", d: `M${cx} ${cy - 6}l5 6l-5 6l-5 -6Z` });
      if (node) {
        if (mark.kind === "run") node.setAttribute("data-run", mark.id);
        if (state.out.has(mark.id)) node.classList.add("out");
        group.append(node);
      }
      drawn.push({ mark, cx, cy, node });
    }
    return drawn;
  }

  function drawInterval(group, mark, cx, y) {
    const cls = mark.kind === "promoted" ? "forecast" : "holdout";
    const cap = mark.kind === "promoted" ? 7 : 0;
    const [a, b] = [y(mark.low), y(mark.high)];
    let d = `M${cx} ${a}V${b}`;
    if (cap) d += `M${cx - cap} ${a}h${2 * cap}M${cx - cap} ${b}h${2 * cap}M${cx - 4} ${y(mark.loss)}h8`;
    group.append(make("path", { class: cls, d }));
  }

  // ---- hover, touch and keys ------------------------------------------------------------------
  let chosen = -1, pinned = false;
  function show(index) {
    pinned = false;
    tip.classList.remove("pinned");
    if (index === chosen && !tip.hidden && !tip.querySelector("button")) return; // shown already
    geometry.drawn[chosen]?.node?.classList.remove("on");
    geometry.drawn[index]?.node?.classList.add("on");
    chosen = index;
    tip.hidden = index < 0;
    if (index < 0) return;
    const { mark } = geometry.drawn[index];
    tip.replaceChildren(html("strong", "", mark.id));
    const rows = html("dl");
    for (const [name, value] of facts(mark)) rows.append(html("dt", "", name), html("dd", "", value));
    tip.append(rows);
    place(index);
  }
  function place(index) {
    const { cx, cy } = geometry.drawn[index];
    tip.style.left = "0"; // measured where nothing squeezes it
    const left = cx + 14 + tip.offsetWidth > geometry.width ? cx - 14 - tip.offsetWidth : cx + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.min(Math.max(0, cy - 30), geometry.height - tip.offsetHeight)}px`;
  }
  // A clicked run keeps its box, with what can be done to it.
  function pin(index) {
    show(index);
    if (index < 0 || geometry.drawn[index].mark.kind !== "run") return;
    const { mark } = geometry.drawn[index];
    const buttons = html("div", "buttons");
    const out = state.out.has(mark.id);
    if (mark.fitted) buttons.append(button(out ? "Put back" : "Leave out", () => leave([mark.id], !out)));
    buttons.append(button("Find in the table", () =>
      document.dispatchEvent(new CustomEvent("show-run", { detail: mark.id }))));
    tip.append(buttons);
    pinned = true;
    tip.classList.add("pinned");
    place(index);
  }
  function button(text, act) {
    const node = html("button", "quiet", text);
    node.type = "button";
    node.addEventListener("click", act);
    return node;
  }
  function leave(ids, out) {
    for (const id of ids) out ? state.out.add(id) : state.out.delete(id);
    show(-1);
    draw();
    press();
  }
  function facts(mark) {
    const rows = [["loss", mark.loss.toFixed(4)]];
    if (mark.kind === "promoted") {
      rows[0] = ["forecast", `${mark.loss.toFixed(4)} (${mark.low.toFixed(4)} to ${mark.high.toFixed(4)})`];
      rows.push(["measured", mark.measured === null ? "not yet" : mark.measured.toFixed(4)]);
    } else if (mark.low !== undefined && mark.low !== null) {
      rows.push(["held-out forecast", `${mark.low.toFixed(4)} to ${mark.high.toFixed(4)}`]);
    }
    rows.push(["compute", `${power(mark.flops)} FLOPs`], ["tokens", si(mark.tokens)]);
    if (mark.size !== null) rows.push([view().name, si(mark.size)]);
    if (mark.note) rows.push(["fit", mark.note]);
    return rows;
  }
  const at = (event) => {
    const box = geometry.svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  function nearest(event) {
    const [px, py] = at(event);
    let best = -1, distance = 40 ** 2;
    geometry.drawn.forEach(({ cx, cy }, i) => {
      const d = (cx - px) ** 2 + (cy - py) ** 2;
      if (d < distance) [best, distance] = [i, d];
    });
    return best;
  }
  let drag = null;
  const veil = html("div", "veil");
  stage.addEventListener("pointermove", (event) => {
    if (!geometry) return;
    if (drag) moveVeil(event);
    else if (!pinned) show(nearest(event));
  });
  stage.addEventListener("pointerleave", () => { if (!drag && !pinned) show(-1); });
  stage.addEventListener("pointerdown", (event) => {
    if (tip.contains(event.target)) return;
    if (event.pointerType !== "mouse" || event.button !== 0) { pin(nearest(event)); return; }
    drag = at(event);
    stage.setPointerCapture(event.pointerId);
  });
  function moveVeil(event) {
    const [px, py] = at(event), [sx, sy] = drag;
    if (!veil.isConnected) stage.append(veil);
    Object.assign(veil.style, {
      left: `${Math.min(px, sx)}px`, top: `${Math.min(py, sy)}px`,
      width: `${Math.abs(px - sx)}px`, height: `${Math.abs(py - sy)}px`,
    });
  }
  stage.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const [px, py] = at(event), [sx, sy] = drag;
    drag = null;
    veil.remove();
    if (Math.abs(px - sx) > 12 && Math.abs(py - sy) > 12) {
      const { x, y } = geometry;
      state.zoom = {
        x: [x.invert(Math.min(px, sx)), x.invert(Math.max(px, sx))],
        y: [y.invert(Math.max(py, sy)), y.invert(Math.min(py, sy))],
      };
      show(-1);
      draw();
    } else {
      pin(nearest(event));
    }
  });
  const unzoom = () => { state.zoom = null; draw(); };
  stage.addEventListener("dblclick", unzoom);
  reset.addEventListener("click", unzoom);
  stage.tabIndex = 0;
  stage.setAttribute("aria-label", "Chart; arrow keys step through the runs");
  stage.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && chosen >= 0 && event.target === stage) {
      pin(chosen);
      tip.querySelector("button")?.focus();
    }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") { show(-1); if (state.zoom) unzoom(); }
    if (!step || !geometry.drawn.length) return;
    event.preventDefault();
    const count = geometry.drawn.length;
    show(chosen < 0 ? (step > 0 ? 0 : count - 1) : (chosen + step + count) % count);
  });

  // ---- legend and conventions -----------------------------------------------------------------
  const keys = [];
  const runsOf = (rung) => view().points.filter((p) => p.rung === rung && p.fitted).map((p) => p.id);
  function press() {
    for (const [rung, node] of keys)
      node.setAttribute("aria-pressed", String(!runsOf(rung).every((id) => state.out.has(id))));
  }
  function legend() {
    const list = html("div", "legend");
    list.append(html("span", "legend-title", "FLOPs per token"));
    for (const rung of data.rungs) {
      const key = html("button", "key");
      key.type = "button";
      key.title = `Leave ${rung.name} out of the law, or put it back`;
      key.disabled = !runsOf(rung.name).length;
      const dot = html("span", "swatch");
      dot.style.background = `var(--${rung.color})`;
      key.append(dot, html("span", "", si(rung.flops_per_token)));
      key.addEventListener("click", () => {
        const ids = runsOf(rung.name), out = !ids.every((id) => state.out.has(id));
        out ? state.outRungs.add(rung.name) : state.outRungs.delete(rung.name);
        leave(ids, out);
      });
      keys.push([rung.name, key]);
      list.append(key);
    }
    return list;
  }
  // The coefficients of the chosen convention.
  const showView = () =>
    document.querySelectorAll("[data-view]").forEach((node) => {
      node.hidden = node.dataset.view !== view().key;
    });
  function conventions() {
    if (data.views.length < 2) return null;
    const group = html("div", "switch");
    const row = html("div", "switch-row");
    row.append(html("span", "legend-title", "Size counted in"), group);
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-label", "What counts as size");
    data.views.forEach((option, index) => {
      const button = html("button", "", option.name);
      button.type = "button";
      button.setAttribute("role", "radio");
      button.setAttribute("aria-checked", String(index === state.view));
      button.addEventListener("click", () => {
        state.view = index;
        state.zoom = null;
        group.querySelectorAll("button").forEach((other, i) =>
          other.setAttribute("aria-checked", String(i === index)));
        showView();
        draw();
      });
      group.append(button);
    });
    return row;
  }
  bar.append(legend());
  press();
  const choice = conventions();
  if (choice) bar.append(choice);
  bar.append(reset);
  host.append(bar, stage);
  host.parentElement.classList.add("live");
  const observer = new ResizeObserver(draw);
  observer.observe(stage);
  draw();
  return { state, showView, stop: () => observer.disconnect() };
};
