// What the law becomes without the runs that a reader leaves out, and how that is said.
const moved = (() => {
  "use strict";
  const enough = (points) =>
    points.length > 6 && ["size", "tokens"].every((k) => new Set(points.map((p) => p[k])).size > 1);

  // {gone, law}: how many fitted runs are out; the law of the others, null where too few are left.
  function without(view, state) {
    const fitted = view.points.filter((point) => point.fitted).concat(view.rest);
    const left = fitted.filter((point) =>
      !(point.id === undefined ? state.outRungs.has(point.rung) : state.out.has(point.id)));
    if (!view.fit || left.length === fitted.length) return { gone: 0, law: null };
    const law = enough(left) ? refit(left, view.fit) : null;
    return { gone: fitted.length - left.length, law };
  }

  const lossAt = (law, size, tokens) =>
    law.E + law.A * size ** -law.alpha + law.B * tokens ** -law.beta;
  // With C = k·N·D fixed, dL/dN = 0 gives N = G·(C/k)^(beta/(alpha+beta)).
  function lossAlong(law, flops, flopsPerSizeToken) {
    const total = law.alpha + law.beta;
    const balance = ((law.alpha * law.A) / (law.beta * law.B)) ** (1 / total);
    const ratio = flops / flopsPerSizeToken;
    const size = balance * ratio ** (law.beta / total);
    return lossAt(law, size, ratio / size);
  }

  function sentence({ gone, law }, { fit, promoted }) {
    if (!gone) return "";
    const runs = gone === 1 ? "1 run" : `${gone.toLocaleString("en")} runs`;
    if (!law) return `Without ${runs} too little is left to fit a law.`;
    const parts = [];
    if (promoted) {
      const now = lossAt(law, promoted.size, promoted.tokens);
      const change = 100 * (now / promoted.loss - 1);
      parts.push(`forecast ${now.toFixed(4)}, with all runs ${promoted.loss.toFixed(4)} (${
        change < 0 ? "−" : "+"}${Math.abs(change).toFixed(2)}%)`);
    }
    for (const name of ["E", "alpha", "beta"])
      parts.push(`${name} ${numbers.trim(law[name], 3)}, was ${numbers.trim(fit.parameters[name], 3)}`);
    return `Without ${runs}: ${parts.join("; ")}.`;
  }
  return { without, lossAt, lossAlong, sentence };
})();
