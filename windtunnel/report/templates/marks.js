// The marks of the chart: runs by the thousand in a few paths, and the one under a pointer.
// A browser lays out, styles and hit-tests every node; a path for each colour and kind costs it
// what a single dot does. Which run is meant is looked up here, in a grid of squares.
const marks = (() => {
  "use strict";
  const RADIUS = 4.2, REACH = 40; // pixels: of a dot, and how far off a pointer may be

  const short = (value) => Math.round(value * 10) / 10;
  const dot = (x, y) =>
    `M${short(x - RADIUS)} ${short(y)}a${RADIUS} ${RADIUS} 0 1 0 ${2 * RADIUS} 0` +
    `a${RADIUS} ${RADIUS} 0 1 0 -${2 * RADIUS} 0`;
  const cross = (x, y) => `M${short(x - 4)} ${short(y - 4)}l8 8m0 -8l-8 8`;
  const bar = (x, low, high) => `M${short(x)} ${short(low)}V${short(high)}`;

  // places: [{mark, cx, cy}]; returns [{class, style, d, runs}] in the order in which they are drawn.
  function paths(places, isOut) {
    const groups = new Map();
    for (const { mark, cx, cy } of places) {
      if (mark.kind !== "run") continue;
      const kind = mark.excluded ? "excluded" : mark.other ? "dot other"
        : mark.low === null ? "dot" : "dot hollow";
      const name = isOut(mark) ? `${kind} out` : kind;
      const key = `${name} ${mark.color}`;
      let group = groups.get(key);
      if (!group) {
        group = { class: name, style: `--c:var(--${mark.color})`, parts: [] };
        groups.set(key, group);
      }
      group.parts.push(mark.excluded ? cross(cx, cy) : dot(cx, cy));
    }
    return [...groups.values()].map(({ parts, ...group }) =>
      ({ ...group, d: parts.join(""), runs: parts.length }));
  }

  // What the hold-out forecast for the runs it was not shown, all in one path.
  const intervals = (places, y) =>
    places.filter(({ mark }) => mark.kind === "run" && mark.low !== null)
      .map(({ mark, cx }) => bar(cx, y(mark.low), y(mark.high))).join("");

  // A function from a point to the index of the nearest place within reach, -1 where there is none.
  function finder(places) {
    const squares = new Map();
    const square = (x, y) => Math.floor(x / REACH) * 65536 + Math.floor(y / REACH);
    places.forEach(({ cx, cy }, i) => {
      const key = square(cx, cy), found = squares.get(key);
      found ? found.push(i) : squares.set(key, [i]);
    });
    return (px, py) => {
      let best = -1, distance = REACH ** 2;
      for (let dx = -REACH; dx <= REACH; dx += REACH)
        for (let dy = -REACH; dy <= REACH; dy += REACH)
          for (const i of squares.get(square(px + dx, py + dy)) ?? []) {
            const d = (places[i].cx - px) ** 2 + (places[i].cy - py) ** 2;
            if (d < distance) [best, distance] = [i, d];
          }
      return best;
    };
  }
  return { paths, intervals, finder };
})();
