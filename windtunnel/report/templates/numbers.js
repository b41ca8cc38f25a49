// Numbers as the tables write them.
const numbers = (() => {
  "use strict";
  const trim = (x, digits) => String(Number(x.toPrecision(digits)));
  const si = (x) => {
    for (const [factor, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
      if (Math.abs(x) >= factor * 0.9995) return trim(x / factor, 3) + suffix;
    return trim(x, 3);
  };
  const raised = (n) => [...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[+c])).join("");
  const power = (x) => {
    let exponent = Math.floor(Math.log10(x) + 1e-9);
    let front = Number((x / 10 ** exponent).toPrecision(3));
    if (front === 10) { front = 1; exponent += 1; }
    return (front === 1 ? "" : front + "·") + "10" + raised(exponent);
  };
  return { trim, si, power };
})();
