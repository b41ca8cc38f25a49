// Refits L(N, D) = E + A/N^alpha + B/D^beta when runs are left out: the objective of the page's own
// fit (a robust loss of the log residuals), from its own optimum, by damped reweighted least squares.
// A sweep may have thousands of runs, so the loops are over flat arrays and make no objects, and what
// is dear, logarithms and powers, is taken once a cell.
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
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  // Runs of one size and token count share a cell, where the law is looked at once. Of k seeds each
  // weighs 1/(k(1-s) + s), s the seeds' share of a run's variance in the page's fit: all of it, and
  // every run counts alike; none, and the cell counts as one run does.
  function cellsOf(points, share) {
    const bySize = new Map(), size = [], tokens = [], count = [];
    const cell = Int32Array.from(points, (point) => {
      let byTokens = bySize.get(point.size);
      if (!byTokens) bySize.set(point.size, (byTokens = new Map()));
      let index = byTokens.get(point.tokens);
      if (index === undefined) {
        byTokens.set(point.tokens, (index = size.length));
        size.push(Math.log(point.size));
        tokens.push(Math.log(point.tokens));
        count.push(0);
      }
      count[index] += 1;
      return index;
    });
    return { size, tokens, cell, heft: count.map((k) => 1 / (k * (1 - share) + share)) };
  }

  // points: [{size, tokens, loss}]; fit: {parameters, loss, delta, seeds_share} of the page.
  return function (points, fit) {
    const { size, tokens, cell, heft } = cellsOf(points, fit.seeds_share);
    const um = mean(size), vm = mean(tokens), p = fit.parameters, least = 1e-9;
    const u = size.map((x) => x - um), v = tokens.map((x) => x - vm);
    const y = Float64Array.from(points, (point) => Math.log(point.loss));
    const cells = u.length, count = y.length, r = new Float64Array(count);
    const a = new Float64Array(cells), b = new Float64Array(cells), said = new Float64Array(cells);
    const total = new Float64Array(cells), pull = new Float64Array(cells);
    // The terms of size and tokens and the residuals at t; returns the objective there.
    const look = (t) => {
      const e = Math.exp(t[0]);
      for (let c = 0; c < cells; c++) {
        a[c] = Math.exp(t[1] - t[3] * u[c]);
        b[c] = Math.exp(t[2] - t[4] * v[c]);
        said[c] = Math.log(e + a[c] + b[c]);
      }
      let sum = 0;
      for (let i = 0; i < count; i++) {
        r[i] = y[i] - said[cell[i]];
        sum += heft[cell[i]] * rho(r[i], fit.loss, fit.delta);
      }
      return sum;
    };
    const J = new Float64Array(5);
    const normal = (t, H, g) => {
      const e = Math.exp(t[0]);
      total.fill(0);
      pull.fill(0);
      for (let i = 0; i < count; i++) {
        const c = cell[i], w = heft[c] * weight(r[i], fit.loss, fit.delta);
        total[c] += w;
        pull[c] += w * r[i];
      }
      for (let c = 0; c < cells; c++) {
        const f = 1 / (e + a[c] + b[c]);
        J[0] = e * f; J[1] = a[c] * f; J[2] = b[c] * f; J[3] = -J[1] * u[c]; J[4] = -J[2] * v[c];
        for (let j = 0; j < 5; j++) {
          g[j] += pull[c] * J[j];
          for (let k = 0; k <= j; k++) H[j][k] += total[c] * J[j] * J[k];
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
