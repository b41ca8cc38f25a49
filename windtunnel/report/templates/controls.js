// What stands above the chart: the sizes, each of which can be left out, and what counts as size.
const chartControls = (data, state, view, act) => {
  "use strict";
  const node = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    if (tag === "button") made.type = "button";
    return made;
  };

  // ---- sizes ----------------------------------------------------------------------------------
  const keys = [];
  const runsOf = (rung) => view().points.filter((p) => p.rung === rung && p.fitted).map((p) => p.id);
  function press() {
    for (const [rung, key] of keys) {
      const ids = runsOf(rung);  // none before a fit: then nothing is left out either
      key.setAttribute("aria-pressed", String(!ids.length || !ids.every((id) => state.out.has(id))));
    }
  }
  function legend() {
    const list = node("div", "legend");
    list.append(node("span", "legend-title", "FLOPs per token"));
    for (const rung of data.rungs) {
      const key = node("button", "key");
      key.title = `Leave ${rung.name} out of the law, or put it back`;
      key.disabled = !runsOf(rung.name).length;
      const swatch = node("span", "swatch");
      swatch.style.background = `var(--${rung.color})`;
      key.append(swatch, node("span", "", numbers.si(rung.flops_per_token)));
      key.addEventListener("click", () => {
        const ids = runsOf(rung.name), out = !ids.every((id) => state.out.has(id));
        out ? state.outRungs.add(rung.name) : state.outRungs.delete(rung.name);
        act.leave(ids, out);
      });
      keys.push([rung.name, key]);
      list.append(key);
    }
    return list;
  }

  // ---- what counts as size: which parameters, and whether attention is added to them ------------
  const groups = [];
  function group(title, options, chosen, change) {
    const row = node("div", "switch-row"), buttons = node("div", "switch");
    buttons.setAttribute("role", "radiogroup");
    buttons.setAttribute("aria-label", title);
    const made = options.map(([value, text]) => {
      const button = node("button", "", text);
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => change(value));
      buttons.append(button);
      return [value, button];
    });
    groups.push(() => made.forEach(([value, button]) =>
      button.setAttribute("aria-checked", String(value === chosen(view())))));
    row.append(node("span", "legend-title", title), buttons);
    return row;
  }
  // The view that agrees in `kept` with the present one and has `value` in `name`, or any with it.
  function to(name, value, kept) {
    const fitting = data.views.filter((other) => other[name] === value);
    const found = fitting.find((other) => other[kept] === view()[kept]) ?? fitting[0];
    act.choose(found.key);
    groups.forEach((show) => show());
  }
  function conventions() {
    if (data.views.length < 2) return [];
    const seen = (name) => [...new Set(data.views.map((option) => option[name]))];
    const counted = seen("counted").map((value) => [value, value]);
    const attention = seen("attention").map((value) => [value, value ? "counted" : "not counted"]);
    const rows = [
      group("Size: parameters", counted, (v) => v.counted, (x) => to("counted", x, "attention")),
      group("and attention", attention, (v) => v.attention, (x) => to("attention", x, "counted")),
    ];
    groups.forEach((show) => show());
    const both = node("div", "switches");
    both.append(...rows);
    return [both];
  }

  const nodes = [legend(), ...conventions()];
  press();
  return { nodes, press };
};
