// The chart under a mouse, a finger or the arrow keys: the box of a run's numbers, and zoom.
const chartPointer = (stage, chart) => {
  "use strict";
  const { geometry, state, view, leave, zoom } = chart;
  const { si, power } = numbers;
  const html = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  // The ring and the box are moved, never laid out anew with the chart below them.
  const ring = html("div", "ring"), tip = html("div", "tip"), veil = html("div", "veil");
  ring.hidden = tip.hidden = true;
  tip.setAttribute("role", "status");

  // ---- the box of a run's numbers ---------------------------------------------------------------
  let chosen = -1, pinned = false;
  function show(index) {
    pinned = false;
    tip.classList.remove("pinned");
    if (index === chosen && !tip.hidden && !tip.querySelector("button")) return; // shown already
    chosen = index;
    ring.hidden = tip.hidden = index < 0;
    if (index < 0) return;
    const { mark, cx, cy } = geometry().places[index];
    ring.style.transform = `translate(${cx}px, ${cy}px)`;
    const rows = html("dl");
    for (const [name, value] of facts(mark)) rows.append(html("dt", "", name), html("dd", "", value));
    tip.replaceChildren(html("strong", "", mark.id), rows);
    place(index);
  }
  function place(index) {
    const { places, width, height } = geometry(), { cx, cy } = places[index];
    const beside = cx + 14 + tip.offsetWidth > width ? cx - 14 - tip.offsetWidth : cx + 14;
    const top = Math.min(Math.max(0, cy - 30), height - tip.offsetHeight);
    tip.style.transform = `translate(${Math.max(0, beside)}px, ${Math.max(0, top)}px)`;
  }
  // A clicked run keeps its box, with what can be done to it.
  function pin(index) {
    show(index);
    if (index < 0 || geometry().places[index].mark.kind !== "run") return;
    const { mark } = geometry().places[index];
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
  function facts(mark) {
    const rows = [["loss", mark.loss.toFixed(4)]];
    if (mark.kind === "promoted") {
      rows[0] = ["forecast", `${mark.loss.toFixed(4)} (${mark.low.toFixed(4)} to ${mark.high.toFixed(4)})`];
      rows.push(["measured", mark.measured === null ? "not yet" : mark.measured.toFixed(4)]);
    } else if (mark.low !== null) {
      rows.push(["held-out forecast", `${mark.low.toFixed(4)} to ${mark.high.toFixed(4)}`]);
    }
    rows.push(["compute", `${power(mark.flops)} FLOPs`], ["tokens", si(mark.tokens)]);
    if (mark.size !== null) rows.push([view().name, si(mark.size)]);
    if (mark.note) rows.push(["fit", mark.note]);
    return rows;
  }

  // ---- hover, touch and zoom ----------------------------------------------------------------------
  const at = (event) => {
    const box = geometry().svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const nearest = (event) => geometry().nearest(...at(event));
  let drag = null, inside = false;
  const follow = onceAFrame((event) => {
    if (drag) moveVeil(event);
    else if (inside && !pinned) show(nearest(event));
  });
  stage.addEventListener("pointermove", (event) => { inside = true; follow(event); });
  stage.addEventListener("pointerleave", () => {
    inside = false;
    if (!drag && !pinned) show(-1);
  });
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
      const { x, y } = geometry();
      zoom({
        x: [x.invert(Math.min(px, sx)), x.invert(Math.max(px, sx))],
        y: [y.invert(Math.max(py, sy)), y.invert(Math.min(py, sy))],
      });
    } else {
      pin(nearest(event));
    }
  });
  stage.addEventListener("dblclick", () => zoom(null));

  // ---- keys -----------------------------------------------------------------------------------------
  stage.tabIndex = 0;
  stage.setAttribute("aria-label", "Chart; arrow keys step through the runs");
  stage.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && chosen >= 0 && event.target === stage) {
      pin(chosen);
      tip.querySelector("button")?.focus();
    }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") { show(-1); zoom(null); }
    const count = geometry().places.length;
    if (!step || !count) return;
    event.preventDefault();
    show(chosen < 0 ? (step > 0 ? 0 : count - 1) : (chosen + step + count) % count);
  });
  return { nodes: [ring, tip], show };
};
