// One training curve as a small picture: loss against tokens, tokens on a logarithmic axis.
const trainingCurve = (() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg"; // a name, not an address
  const make = (tag, attributes, text) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const { si } = numbers;

  function draw({ tokens, loss }, width = 320, height = 96) {
    const left = 34, bottom = height - 18;
    const svg = make("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Training loss against tokens",
    });
    const x0 = Math.log(tokens[0]), x1 = Math.log(tokens.at(-1)), top = Math.max(...loss);
    const low = Math.min(...loss);
    const x = (t) => left + ((Math.log(t) - x0) / (x1 - x0 || 1)) * (width - left - 4);
    const y = (l) => 8 + ((top - l) / (top - low || 1)) * (bottom - 14);
    svg.append(
      make("path", { class: "curve-axis", fill: "none", d: `M${left} 4V${bottom}H${width}` }),
      make("text", { class: "curve-text end", x: left - 5, y: 12 }, top.toFixed(2)),
      make("text", { class: "curve-text end", x: left - 5, y: bottom }, low.toFixed(2)),
      make("text", { class: "curve-text", x: left, y: height - 4 }, si(tokens[0])),
      make("text", { class: "curve-text end", x: width, y: height - 4 }, `${si(tokens.at(-1))} tokens`),
      make("path", {
        class: "curve-line",
        d: tokens.map((t, i) => `${i ? "L" : "M"}${x(t).toFixed(1)} ${y(loss[i]).toFixed(1)}`).join(""),
      }),
    );
    return svg;
  }
  const logged = (found) =>
    `${found.sampled ? "about " : ""}${found.lines.toLocaleString("en")} logged steps` +
    (found.sampled ? ", of which some are read" : "");
  return { draw, logged };
})();
