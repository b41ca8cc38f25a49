// The main chart: loss against compute, drawn anew at every width, with hover, zoom and the choice of
// the size convention. It replaces the static figure, which stays for readers without scripts.
// `note` tells what leaving runs out moves; `kept` is what the reader chose in an earlier drawing.
const lossChart = (host, data, note, kept) => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg"; // a name, not an address: nothing is fetched
  const { trim, power } = numbers;
  // key: the convention; out: ids of runs left out by the reader; outRungs: sizes left out whole.
  const state = kept ?? { key: data.views[0].key, zoom: null, out: new Set(), outRungs: new Set() };

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

  // Each view has the runs with their size in its own convention; the hold-out was made in the first.
  data.views.forEach((view, index) => {
    view.points = data.points.map((point) => ({
      ...point,
      kind: "run",
      size: data.sizes[point.sizes][view.key] ?? null,
      low: index === 0 ? point.low : null,
      high: index === 0 ? point.high : null,
    }));
    view.marks = view.promoted ? [...view.points, { ...view.promoted, kind: "promoted" }] : view.points;
    // Fitted runs that are not drawn, where a sweep has more than an eye can tell apart.
    view.rest = data.rest.cells.flatMap(({ rung, sizes, tokens, losses }) => {
      const size = data.sizes[sizes][view.key];
      return size ? losses.map((loss) => ({ size, tokens, loss, rung: data.rungs[rung].name })) : [];
    });
  });
  const view = () => data.views.find((one) => one.key === state.key) ?? data.views[0];
  const extent = () => {
    if (state.zoom) return state.zoom;
    const { points: all, law, promoted } = view();
    const c = all.map((p) => p.flops).concat(law ? law.flops : [], promoted ? [promoted.flops] : []);
    const l = all.map((p) => p.loss)
      .concat(law ? law.loss : []) // not its band, which may be wider than any page
      .concat(promoted ? [promoted.low, promoted.high, promoted.measured ?? promoted.loss] : []);
    return { x: scales.padded(c, 0.03), y: scales.padded(l, 0.05) };
  };
  // Fitted again only when the runs or the convention change, not for a zoom or another width.
  let known = { of: "", change: null };
  function change() {
    const of = `${view().key} ${[...state.outRungs].join()} ${[...state.out].join()}`;
    if (known.of !== of) known = { of, change: moved.without(view(), state) };
    return known.change;
  }

  const stage = html("div", "chart-stage"), bar = html("div", "chart-bar");
  const reset = html("button", "quiet", "Reset zoom");
  reset.type = "button";
  reset.hidden = true;
  let geometry = null;

  // ---- drawing --------------------------------------------------------------------------------
  function draw() {
    const width = Math.max(280, stage.clientWidth);
    const height = Math.round(Math.min(520, Math.max(300, width * 0.56)));
    const box = { left: 50, right: width - 10, top: 10, bottom: height - 46 };
    const { x: xr, y: yr } = extent();
    const x = scales.log(xr, [box.left, box.right]), y = scales.log(yr, [box.bottom, box.top]);
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
    const found = change();
    drawLaw(inside, x, y);
    drawRungs(inside, x, y);
    if (found.law) drawMoved(inside, x, y, found.law);
    const places = drawMarks(inside, x, y);
    svg.append(inside);
    note.textContent = moved.sentence(found, view());
    if (found.law) note.dataset.law = JSON.stringify(found.law);
    geometry = { svg, x, y, places, nearest: marks.finder(places), width, height };
    stage.replaceChildren(svg, ...pointer.nodes);
    pointer.show(-1);
    reset.hidden = !state.zoom;
  }
  function drawAxes(svg, box, x, y, xr, yr, width) {
    const yTicks = yr[1] / yr[0] < 8 ? scales.evenTicks(...yr, 12) : scales.logTicks(...yr, 8);
    for (const tick of yTicks) {
      svg.append(make("line", {
        class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick),
      }));
      svg.append(make("text", { class: "tick end", x: box.left - 8, y: y(tick) + 4 }, trim(tick, 6)));
    }
    const most = width < 500 ? 5 : 9, round = scales.logTicks(...xr, most);
    // Runs of about one compute have no round value beside them, or one that gives no scale.
    for (const tick of round.length > 1 ? round : scales.evenTicks(...xr, Math.ceil(most / 2))) {
      svg.append(make("line", {
        class: "axis", x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 4,
      }));
      const text = power(tick);
      const at = Math.min(x(tick), width - 3.2 * text.length); // the last one stays in the picture
      svg.append(make("text", { class: "tick mid", x: at, y: box.bottom + 18 }, text));
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
    const { law: { flops }, fit, promoted: target } = view();
    const along = flops.map((c) => moved.lossAlong(law, c, fit.flops_per_size_token));
    group.append(make("path", { class: "moved", d: path(flops, along, x, y) }));
    if (!target) return;
    const cy = y(moved.lossAt(law, target.size, target.tokens));
    group.append(make("path", { class: "moved-point", d: `M${x(target.flops) - 9} ${cy}h18` }));
  }

  function drawMarks(group, x, y) {
    const places = view().marks.map((mark) => ({
      mark,
      cx: x(mark.flops),
      cy: y(mark.kind === "promoted" ? mark.measured ?? mark.loss : mark.loss),
    }));
    const between = marks.intervals(places, y);
    if (between) group.append(make("path", { class: "holdout", d: between }));
    for (const { runs, ...drawn } of marks.paths(places, (mark) => state.out.has(mark.id)))
      group.append(make("path", { ...drawn, "data-runs": runs }));
    const last = places.at(-1);
    if (last?.mark.kind === "promoted") drawPromoted(group, last, y);
    return places;
  }

  function drawPromoted(group, { mark, cx, cy }, y) {
    const [a, b] = [y(mark.low), y(mark.high)];
    group.append(make("path", {
      class: "forecast",
      d: `M${cx} ${a}V${b}M${cx - 7} ${a}h14M${cx - 7} ${b}h14M${cx - 4} ${y(mark.loss)}h8`,
    }));
    if (mark.measured !== null)
      group.append(make("path", { class: "measured", d: `M${cx} ${cy - 6}l5 6l-5 6l-5 -6Z` }));
  }

  // ---- putting it on the page -----------------------------------------------------------------
  // The coefficients of the chosen convention.
  const showView = () =>
    document.querySelectorAll("[data-view]").forEach((node) => {
      node.hidden = node.dataset.view !== view().key;
    });
  function leave(ids, out) {
    for (const id of ids) out ? state.out.add(id) : state.out.delete(id);
    draw();
    controls.press();
  }
  function choose(key) {
    state.key = key;
    state.zoom = null;
    showView();
    draw();
  }
  function zoom(range) {
    if (range === state.zoom) return;
    state.zoom = range;
    draw();
  }
  const pointer = chartPointer(stage, { geometry: () => geometry, state, view, leave, zoom });
  reset.addEventListener("click", () => zoom(null));
  const controls = chartControls(data, state, view, { leave, choose });
  bar.append(...controls.nodes, reset);
  host.append(bar, stage);
  host.parentElement.classList.add("live");
  draw();
  const observer = new ResizeObserver(onceAFrame(() => {
    if (stage.clientWidth && Math.max(280, stage.clientWidth) !== geometry.width) draw();
  }));
  observer.observe(stage);
  return { state, showView, stop: () => observer.disconnect() };
};
