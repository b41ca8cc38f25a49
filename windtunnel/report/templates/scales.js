// Logarithmic axes: where a value stands, and the round values that are named beside them.
const scales = (() => {
  "use strict";
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
  const log = ([low, high], [from, to]) => {
    const a = Math.log(low), b = Math.log(high);
    const map = (x) => from + ((Math.log(x) - a) / (b - a)) * (to - from);
    map.invert = (p) => Math.exp(a + ((p - from) / (to - from)) * (b - a));
    return map;
  };
  return { logTicks, evenTicks, padded, log };
})();
