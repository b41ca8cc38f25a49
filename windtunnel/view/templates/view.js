// Asks for the state every second and fetches the parts whose version changed. Text from outside is
// only ever set as text; sections come from the server, where they were escaped.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg"; // a name, not an address
  const token = new URLSearchParams(location.search).get("token");
  const address = (path, query = {}) => {
    const words = new URLSearchParams(query);
    if (token) words.set("token", token);
    const text = words.toString();
    return text ? `${path}?${text}` : path;
  };
  const get = async (path, query) => {
    const answer = await fetch(address(path, query), { signal: AbortSignal.timeout(20000) });
    if (!answer.ok) throw new Error(String(answer.status));
    return answer;
  };
  const node = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const draw = (tag, attributes, text) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const si = (x) => {
    for (const [factor, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
      if (Math.abs(x) >= factor * 0.9995) return Number((x / factor).toPrecision(3)) + suffix;
    return String(Number(x.toPrecision(3)));
  };

  // ---- one training curve ---------------------------------------------------------------------
  function curve({ tokens, loss }, height = 96) {
    const width = 320, left = 34, bottom = height - 18;
    const svg = draw("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Training loss against tokens",
    });
    const x0 = Math.log(tokens[0]), x1 = Math.log(tokens.at(-1)), top = Math.max(...loss);
    const low = Math.min(...loss);
    const x = (t) => left + ((Math.log(t) - x0) / (x1 - x0 || 1)) * (width - left - 4);
    const y = (l) => 8 + ((top - l) / (top - low || 1)) * (bottom - 14);
    svg.append(
      draw("path", { class: "curve-axis", fill: "none", d: `M${left} 4V${bottom}H${width}` }),
      draw("text", { class: "curve-text end", x: left - 5, y: 12 }, top.toFixed(2)),
      draw("text", { class: "curve-text end", x: left - 5, y: bottom }, low.toFixed(2)),
      draw("text", { class: "curve-text", x: left, y: height - 4 }, si(tokens[0])),
      draw("text", { class: "curve-text end", x: width, y: height - 4 }, `${si(tokens.at(-1))} tokens`),
      draw("path", {
        class: "curve-line",
        d: tokens.map((t, i) => `${i ? "L" : "M"}${x(t).toFixed(1)} ${y(loss[i]).toFixed(1)}`).join(""),
      }),
    );
    return svg;
  }
  const logged = (found) =>
    `${found.sampled ? "about " : ""}${found.lines.toLocaleString("en")} logged steps` +
    (found.sampled ? ", of which some are read" : "");

  // ---- what happens now -----------------------------------------------------------------------
  function showNow(now) {
    if (!now.counts) return;
    const bar = document.querySelector(".whole");
    const percent = Math.round(1000 * now.share) / 10;
    bar.firstElementChild.style.width = `${percent}%`;
    bar.setAttribute("aria-valuenow", percent);
    const more = now.more ? `; ${now.more} more are running` : "";
    const trouble = now.trouble ? ` The page could not be brought up to date: ${now.trouble}` : "";
    byId("now-text").textContent = `${now.text}. ${now.cost}${more}.${trouble}`;
    const cards = now.running.map((run) => card(run, false));
    if (now.launch) cards.unshift(card(now.launch, true));
    byId("running").replaceChildren(...cards);
  }
  function card(run, launched) {
    const made = node("div", launched ? "run-now launched" : "run-now");
    const name = node("strong", "", launched ? `Launched: ${run.label}` : run.label);
    name.title = run.label;
    const words = [run.status === "running" ? run.phase : run.status];
    if (run.steps) words.push(`step ${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}`);
    if (run.loss !== null) words.push(`loss ${run.loss.toFixed(3)}`);
    if (run.tokens_per_s) words.push(`${si(run.tokens_per_s)} tokens/s`);
    if (run.left) words.push(`${run.left} left`);
    made.append(name, node("p", "", words.join(", ")));
    if (run.curve && run.curve.tokens.length > 1) made.append(curve(run.curve));
    return made;
  }

  // ---- sections, figures and the chart --------------------------------------------------------
  const shown = {};
  let chart = null;
  async function showPart(name, version) {
    const answer = await get(`/part/${name}`);
    if (name === "chart") {
      showChart(await answer.json());
    } else {
      const place = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
      if (!place) return;
      const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
      place.replaceChildren(...parsed.body.childNodes);
      if (name === "law" && chart) chart.showView();
    }
    shown[name] = version;
  }
  function showChart(data) {
    const host = byId("chart");
    const kept = chart?.state;
    chart?.stop();
    host.replaceChildren();
    if (!data.points.length) {
      host.append(node("p", "missing", "No run has finished yet, so there is nothing to draw."));
      return;
    }
    if (kept) kept.view = Math.min(kept.view, data.views.length - 1);
    const all = data.points.length + data.rest.runs;
    byId("thinned").textContent = data.rest.runs
      ? `${data.points.length} of ${all} runs are drawn, evenly along compute; the law is fitted to all.`
      : "";
    chart = lossChart(host, data, byId("moved"), kept);
    chart.showView();
  }

  // ---- the table of runs ----------------------------------------------------------------------
  const WORDS = {
    run: "Run", size: "Size", role: "Role", variant: "Variant", status: "Status", loss: "Loss, nats",
    bits_per_byte: "Bits per byte", flops_per_token: "FLOPs per token", tokens: "Tokens",
    flops: "Compute, FLOPs", peak_lr: "Peak LR", batch: "Batch, tokens", seed: "Seed",
    max_vio: "MaxVio", wall_s: "Took, s", fit: "Fit",
  };
  const asked = { sort: "", falling: "0", words: "", first: 0, count: 50 };
  let asking = 0;
  async function showRows() {
    const mine = ++asking;
    const page = await (await get("/runs", asked)).json();
    if (mine !== asking) return; // a later question is under way
    const head = document.querySelector("#runs-table thead tr");
    if (!head.cells.length) head.append(...page.columns.map(heading));
    for (const cell of head.cells) {
      cell.removeAttribute("aria-sort");
      if (cell.dataset.column === asked.sort)
        cell.setAttribute("aria-sort", asked.falling === "1" ? "descending" : "ascending");
    }
    document.querySelector("#runs-table tbody").replaceChildren(
      ...page.rows.map((row) => line(page.columns, row)));
    byId("filter-count").textContent = asked.words ? `${page.found} of ${page.total}` : "";
    byId("shown").textContent = page.found
      ? `${page.first + 1} to ${page.first + page.rows.length} of ${page.found}`
      : page.total ? "No run matches." : "The runs are being read.";
    byId("earlier").disabled = page.first === 0;
    byId("later").disabled = page.first + page.rows.length >= page.found;
  }
  function heading(column) {
    const cell = node("th"), button = node("button", "", WORDS[column] ?? column);
    cell.scope = "col";
    cell.dataset.column = column;
    button.type = "button";
    button.addEventListener("click", () => {
      asked.falling = asked.sort === column && asked.falling === "0" ? "1" : "0";
      asked.sort = column;
      asked.first = 0;
      showRows();
    });
    cell.append(button);
    return cell;
  }
  const WRITTEN = {
    loss: (x) => x.toFixed(4), bits_per_byte: (x) => x.toFixed(4), max_vio: (x) => x.toFixed(2),
    flops_per_token: si, tokens: si, flops: (x) => x.toExponential(2), wall_s: si,
    peak_lr: (x) => String(Number(x.toPrecision(3))),
  };
  function line(columns, row) {
    const made = node("tr");
    made.dataset.run = row[0];
    made.tabIndex = 0;
    columns.forEach((column, i) => {
      const value = row[i];
      const cell = node(i ? "td" : "th", { run: "name", size: "name short", fit: "words" }[column] ?? "");
      if (column === "status") cell.append(node("span", `tag ${/^[a-z]+$/.test(value) ? value : ""}`, value));
      else cell.textContent = value === null ? "" : (WRITTEN[column]?.(value) ?? value);
      if (!i) { cell.scope = "row"; cell.title = value; }
      made.append(cell);
    });
    made.addEventListener("click", () => showRun(row[0]));
    made.addEventListener("keydown", (event) => { if (event.key === "Enter") showRun(row[0]); });
    return made;
  }
  async function showRun(id) {
    const place = byId("one-run");
    for (const row of document.querySelectorAll("#runs-table tbody tr"))
      row.classList.toggle("chosen", row.dataset.run === id);
    const found = await (await get("/curve", { id })).json();
    place.hidden = false;
    place.replaceChildren(node("h3", "", id));
    if (found) place.append(curve(found, 170), node("p", "note", `Training loss, ${logged(found)}.`));
    else place.append(node("p", "missing", "This run has logged no training loss yet."));
    place.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
  let typing = 0;
  byId("filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      asked.words = byId("filter").value;
      asked.first = 0;
      showRows();
    }, 60);
  });
  const turn = (by) => { asked.first = Math.max(0, asked.first + by * asked.count); showRows(); };
  byId("earlier").addEventListener("click", () => turn(-1));
  byId("later").addEventListener("click", () => turn(1));
  document.addEventListener("show-run", (event) => {
    byId("filter").value = asked.words = event.detail;
    asked.first = 0;
    showRows();
    byId("runs").scrollIntoView({ behavior: "smooth" });
  });

  // ---- staying up to date ---------------------------------------------------------------------
  let rowsOf = "";
  async function bringUpToDate(state) {
    showNow(state.now ?? {});
    const versions = state.versions ?? {};
    const changed = Object.keys(versions).filter((name) => versions[name] !== shown[name]);
    changed.sort((a, b) => (b === "chart") - (a === "chart"));
    const rows = `${state.runs} ${JSON.stringify(state.now?.counts)}`;
    if (rows !== rowsOf) { rowsOf = rows; await showRows(); }
    for (const name of changed) await showPart(name, versions[name]);
  }
  const fresh = byId("fresh");
  async function follow() {
    try {
      if (!document.hidden) {
        await bringUpToDate(await (await get("/state")).json());
        fresh.textContent = "Live";
        fresh.classList.remove("lost");
      }
    } catch {
      fresh.textContent = "Not connected; trying again";
      fresh.classList.add("lost");
    }
    setTimeout(follow, document.hidden ? 5000 : 1000);
  }
  showNow(JSON.parse(byId("state").textContent).now ?? {});
  follow();
})();
