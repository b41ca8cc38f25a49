// Asks for the state every second and fetches the parts whose version changed. Text from outside is
// only ever set as text; sections come from the server, where they were escaped.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
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
  const { si } = numbers;

  // ---- what happens now -----------------------------------------------------------------------
  let nowShown = "";
  function showNow(now) {
    const news = JSON.stringify(now);
    if (!now.counts || news === nowShown) return; // most seconds bring nothing new
    nowShown = news;
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
    if (run.curve && run.curve.tokens.length > 1) made.append(trainingCurve.draw(run.curve));
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
      const unfolded = place.querySelector("details")?.open ?? false; // stays as the reader left it
      place.replaceChildren(...parsed.body.childNodes);
      place.querySelector("details")?.toggleAttribute("open", unfolded);
      if (name === "law" && chart) chart.showView();
    }
    shown[name] = version;
  }
  function showChart(data) {
    const host = byId("chart");
    const kept = chart?.state;
    chart?.stop();
    chart = null;
    host.replaceChildren();
    if (!data.points.length) {
      host.append(node("p", "missing", "No run has finished yet, so there is nothing to draw."));
      return;
    }
    const count = (runs) => runs.toLocaleString("en");
    byId("thinned").textContent = data.rest.runs
      ? `${count(data.points.length)} of ${count(data.points.length + data.rest.runs)} runs are drawn: ` +
        "evenly along compute, and those furthest from the law. The law is fitted to all."
      : "";
    chart = lossChart(host, data, byId("moved"), kept);
    chart.showView();
  }

  // ---- staying up to date ---------------------------------------------------------------------
  const table = runsTable(get);
  let tableShown = 0;
  async function bringUpToDate(state) {
    showNow(state.now ?? {});
    const versions = state.versions ?? {};
    const changed = Object.keys(versions).filter((name) => versions[name] !== shown[name]);
    changed.sort((a, b) => (b === "chart") - (a === "chart"));
    if (state.table !== tableShown || table.isBehind()) {
      await table.refresh();
      tableShown = state.table;
    }
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
