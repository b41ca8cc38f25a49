// Refits L(N, D) = E + A/N^alpha + B/D^beta when runs are left out: the objective of the page's own
// fit (a robust loss of the log residuals), from its own optimum, by damped reweighted least squares.
const refit = (() => {
  "use strict";

  // Solve the symmetric positive system H x = g in place, by Gauss with pivoting.
  function solve(H, g) {
    const n = g.length, M = H.map((row, i) => [...row, g[i]]);
    for (let k = 0; k < n; k++) {
      let pivot = k;
      for (let i = k + 1; i < n; i++) if (Math.abs(M[i][k]) > Math.abs(M[pivot][k])) pivot = i;
      if (M[pivot][k] === 0) return null;
      [M[k], M[pivot]] = [M[pivot], M[k]];
      for (let i = k + 1; i < n; i++) {
        const f = M[i][k] / M[k][k];
        for (let j = k; j <= n; j++) M[i][j] -= f * M[k][j];
      }
    }
    const x = new Array(n);
    for (let k = n - 1; k >= 0; k--) {
      x[k] = M[k][n];
      for (let j = k + 1; j < n; j++) x[k] -= M[k][j] * x[j];
      x[k] /= M[k][k];
    }
    return x;
  }

  const rho = (r, loss, delta) => {
    const size = Math.abs(r);
    if (loss === "lad") return size;
    return loss === "squares" || size <= delta ? 0.5 * r * r : delta * (size - 0.5 * delta);
  };
  const weight = (r, loss, delta) => {
    const size = Math.max(Math.abs(r), 1e-12);
    if (loss === "lad") return 1 / Math.max(size, 1e-7);
    return loss === "squares" || size <= delta ? 1 : delta / size;
  };

  // points: [{size, tokens, loss}]; fit: {parameters, loss, delta} of the page.
  return function (points, fit) {
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const u = points.map((p) => Math.log(p.size)), v = points.map((p) => Math.log(p.tokens));
    const y = points.map((p) => Math.log(p.loss));
    const um = mean(u), vm = mean(v), p = fit.parameters, least = 1e-9;
    // Logs of the three terms at the middle of the points, then the exponents: hardly correlated.
    let theta = [
      Math.log(Math.max(p.E, least)), Math.log(Math.max(p.A, least)) - p.alpha * um,
      Math.log(Math.max(p.B, least)) - p.beta * vm, p.alpha, p.beta,
    ];
    const terms = (t, i) => [
      Math.exp(t[0]), Math.exp(t[1] - t[3] * (u[i] - um)), Math.exp(t[2] - t[4] * (v[i] - vm)),
    ];
    const residual = (t, i) => y[i] - Math.log(terms(t, i).reduce((a, b) => a + b));
    const objective = (t) =>
      y.reduce((sum, _, i) => sum + rho(residual(t, i), fit.loss, fit.delta), 0);
    let value = objective(theta), damping = 1e-3, idle = 0;
    for (let step = 0; step < 3000 && idle < 12; step++) {
      const H = Array.from({ length: 5 }, () => new Array(5).fill(0)), g = new Array(5).fill(0);
      for (let i = 0; i < y.length; i++) {
        const [e, a, b] = terms(theta, i), f = e + a + b, r = y[i] - Math.log(f);
        const w = weight(r, fit.loss, fit.delta);
        const J = [e / f, a / f, b / f, (-a * (u[i] - um)) / f, (-b * (v[i] - vm)) / f];
        for (let j = 0; j < 5; j++) {
          g[j] += w * J[j] * r;
          for (let k = 0; k < 5; k++) H[j][k] += w * J[j] * J[k];
        }
      }
      for (let j = 0; j < 5; j++) H[j][j] += damping * (H[j][j] + 1e-12);
      const d = solve(H, g);
      const next = d && theta.map((t, j) => t + d[j]);
      const reached = next && next[3] > 0 && next[4] > 0 ? objective(next) : Infinity;
      if (reached < value) {
        idle = value - reached < 1e-13 * value ? idle + 1 : 0;
        [theta, value] = [next, reached];
        damping = Math.max(damping / 4, 1e-12);
      } else {
        damping *= 5;
        if (damping > 1e10) break;
      }
    }
    const [e, a, b, alpha, beta] = theta;
    return {
      E: Math.exp(e), A: Math.exp(a + alpha * um), B: Math.exp(b + beta * vm), alpha, beta,
      objective: value,
    };
  };
})();
