// Refits L(N, D) = E + A/N^alpha + B/D^beta when runs are left out: the objective of the page's own
// fit (a robust loss of the log residuals), from its own optimum, by damped reweighted least squares.
// A sweep may have thousands of runs, so the loops are over flat arrays and make no objects.
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
  const logs = (points, name) => Float64Array.from(points, (point) => Math.log(point[name]));
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  // points: [{size, tokens, loss}]; fit: {parameters, loss, delta} of the page.
  return function (points, fit) {
    const u = logs(points, "size"), v = logs(points, "tokens"), y = logs(points, "loss");
    const um = mean(u), vm = mean(v), p = fit.parameters, least = 1e-9, count = y.length;
    for (let i = 0; i < count; i++) { u[i] -= um; v[i] -= vm; }
    const a = new Float64Array(count), b = new Float64Array(count), r = new Float64Array(count);
    // The terms of size and tokens and the residuals at t; returns the objective there.
    const look = (t) => {
      const e = Math.exp(t[0]);
      let sum = 0;
      for (let i = 0; i < count; i++) {
        a[i] = Math.exp(t[1] - t[3] * u[i]);
        b[i] = Math.exp(t[2] - t[4] * v[i]);
        r[i] = y[i] - Math.log(e + a[i] + b[i]);
        sum += rho(r[i], fit.loss, fit.delta);
      }
      return sum;
    };
    const J = new Float64Array(5);
    const normal = (t, H, g) => {
      const e = Math.exp(t[0]);
      for (let i = 0; i < count; i++) {
        const f = 1 / (e + a[i] + b[i]), w = weight(r[i], fit.loss, fit.delta);
        J[0] = e * f; J[1] = a[i] * f; J[2] = b[i] * f; J[3] = -J[1] * u[i]; J[4] = -J[2] * v[i];
        for (let j = 0; j < 5; j++) {
          g[j] += w * J[j] * r[i];
          for (let k = 0; k <= j; k++) H[j][k] += w * J[j] * J[k];
        }
      }
      for (let j = 0; j < 5; j++) for (let k = 0; k < j; k++) H[k][j] = H[j][k];
    };
    // Logs of the three terms at the middle of the points, then the exponents: hardly correlated.
    let theta = [
      Math.log(Math.max(p.E, least)), Math.log(Math.max(p.A, least)) - p.alpha * um,
      Math.log(Math.max(p.B, least)) - p.beta * vm, p.alpha, p.beta,
    ];
    let value = look(theta), damping = 1e-3, idle = 0;
    for (let step = 0; step < 3000 && idle < 4; step++) {
      const H = Array.from({ length: 5 }, () => new Array(5).fill(0)), g = new Array(5).fill(0);
      normal(theta, H, g);
      let better = false;
      while (!better && damping <= 1e10) {
        const damped = H.map((row, j) => row.map((h, k) => (j === k ? h + damping * (h + 1e-12) : h)));
        const d = solve(damped, g);
        const next = d && theta.map((t, j) => t + d[j]);
        const reached = next && next[3] > 0 && next[4] > 0 ? look(next) : Infinity;
        better = reached < value;
        if (!better) { damping *= 5; continue; }
        idle = value - reached < 1e-12 * value ? idle + 1 : 0;
        [theta, value] = [next, reached];
        damping = Math.max(damping / 4, 1e-12);
      }
      if (!better) break;
    }
    const [e, A, B, alpha, beta] = theta;
    return {
      E: Math.exp(e), A: Math.exp(A + alpha * um), B: Math.exp(B + beta * vm), alpha, beta,
      objective: value,
    };
  };
})();
