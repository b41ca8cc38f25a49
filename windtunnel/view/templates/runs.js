// The table of runs. Sorted and filtered by the server; only the rows in sight are in the page, so that
// ten thousand cost what fifty do. `get` asks the server. Rows are of one height: their place is known.
const runsTable = (get) => {
  "use strict";
  const ROW = 34, BEYOND = 12; // pixels of a row, as view.css has it; rows held ready on either side
  const COLUMNS = { // heading, width in rem (a run's name has its own in view.css), class
    run: ["Run", null, "name"], status: ["Status", 6.5, "word"], loss: ["Loss, nats", 6.5],
    size: ["Size", 6.5, "name word"], role: ["Role", 5.5, "word"], variant: ["Variant", 11, "name word"],
    bits_per_byte: ["Bits per byte", 7.5], flops_per_token: ["FLOPs per token", 8.5],
    tokens: ["Tokens", 5.5], flops: ["Compute, FLOPs", 8.5], peak_lr: ["Peak LR", 6],
    batch: ["Batch, tokens", 7.5], seed: ["Seed", 4.5], max_vio: ["MaxVio", 5.5],
    wall_s: ["Took, s", 5.5], fit: ["Fit", 26, "words"],
  };
  const { si } = numbers;
  const WRITTEN = {
    loss: (x) => x.toFixed(4), bits_per_byte: (x) => x.toFixed(4), max_vio: (x) => x.toFixed(2),
    flops_per_token: si, tokens: si, flops: (x) => x.toExponential(2), wall_s: si,
    peak_lr: (x) => String(Number(x.toPrecision(3))),
  };
  const byId = (id) => document.getElementById(id);
  const node = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const pane = byId("runs-window"), table = byId("runs-table");
  const head = table.tHead.rows[0], body = table.tBodies[0];
  const asked = { sort: "", falling: "0", words: "" };
  let held = null, asking = 0, chosen = null, isBehind = false;

  // ---- the window ---------------------------------------------------------------------------------
  const inSight = () => {
    const first = Math.floor(pane.scrollTop / ROW), count = Math.ceil(pane.clientHeight / ROW);
    return { first, last: first + count };
  };
  async function fetchWindow(first, count) {
    const mine = ++asking;
    let page;
    try {
      const answer = await get("/runs", { ...asked, first: Math.max(0, first), count });
      page = await answer.json();
    } catch (error) {
      if (mine === asking) isBehind = true;
      throw error;
    }
    if (mine !== asking) return; // a later question is under way
    held = page;
    isBehind = false;
    if (!head.cells.length) headings(page.columns);
    for (const cell of head.cells) {
      cell.removeAttribute("aria-sort");
      if (cell.dataset.column === asked.sort)
        cell.setAttribute("aria-sort", asked.falling === "1" ? "descending" : "ascending");
    }
    table.setAttribute("aria-rowcount", page.found + 1);
    const below = page.found - page.first - page.rows.length;
    body.replaceChildren(
      spacer(page.first), ...page.rows.map((row, i) => line(row, page.first + i)), spacer(below));
    byId("filter-count").textContent = asked.words
      ? `${page.found.toLocaleString("en")} of ${page.total.toLocaleString("en")}` : "";
    tell();
  }
  function spacer(rows) {
    const made = node("tr", "spacer");
    made.setAttribute("aria-hidden", "true");
    made.style.height = `${Math.max(0, rows) * ROW}px`;
    return made;
  }
  function tell() {
    const { first, last } = inSight(), { found, total } = held;
    byId("shown").textContent = found
      ? `${(first + 1).toLocaleString("en")} to ${Math.min(last, found).toLocaleString("en")} of ${
        found.toLocaleString("en")}`
      : total ? "No run matches." : "The runs are being read.";
  }
  // A new question starts at the top; a scroll asks only once it nears the end of what is held. One
  // that is lost on the way is asked again by whoever follows the state, and says that there is no
  // connection.
  const tryRefresh = () => void refresh().catch(() => {});
  function ask() {
    pane.scrollTop = 0;
    tryRefresh();
  }
  function refresh() {
    const { first, last } = inSight();
    return fetchWindow(first - BEYOND, Math.max(last - first, 20) + 2 * BEYOND);
  }
  pane.addEventListener("scroll", onceAFrame(() => {
    if (!held) return;
    const { first, last } = inSight(), end = held.first + held.rows.length;
    if (first < held.first || Math.min(last, held.found) > end) tryRefresh();
    else tell();
  }), { passive: true });

  // ---- its parts ------------------------------------------------------------------------------------
  function headings(columns) {
    const widths = columns.map((column) => (column === "run" ? "var(--name-width)" : `${(COLUMNS[column] ?? [column, 8])[1]}rem`));
    table.style.width = `calc(${widths.join(" + ")})`;
    table.querySelector("colgroup").append(...widths.map((width) => {
      const col = node("col");
      col.style.width = width;
      return col;
    }));
    head.append(...columns.map(heading));
  }
  function heading(column) {
    const [text, , className] = COLUMNS[column] ?? [column];
    const cell = node("th", className?.includes("word") ? className.split(" ").at(-1) : ""), button = node("button", "", text);
    cell.scope = "col";
    cell.dataset.column = column;
    button.type = "button";
    button.addEventListener("click", () => {
      asked.falling = asked.sort === column && asked.falling === "0" ? "1" : "0";
      asked.sort = column;
      ask();
    });
    cell.append(button);
    return cell;
  }
  function line(row, index) {
    const made = node("tr", row[0] === chosen ? "chosen" : "");
    made.dataset.run = row[0];
    made.tabIndex = 0;
    made.setAttribute("aria-rowindex", index + 2);
    held.columns.forEach((column, i) => {
      const value = row[i], className = COLUMNS[column]?.[2] ?? "";
      const cell = node(i ? "td" : "th", className);
      if (column === "status")
        cell.append(node("span", `tag ${/^[a-z]+$/.test(value) ? value : ""}`, value));
      else cell.textContent = value === null ? "" : (WRITTEN[column]?.(value) ?? value);
      if (className && className !== "word" && value !== null) cell.title = value;
      if (!i) cell.scope = "row";
      made.append(cell);
    });
    made.addEventListener("click", () => showRun(row));
    made.addEventListener("keydown", (event) => { if (event.key === "Enter") showRun(row); });
    return made;
  }

  // ---- one run --------------------------------------------------------------------------------------
  async function showRun(row) {
    const place = byId("one-run"), id = chosen = row[0];
    for (const other of body.rows) other.classList.toggle("chosen", other.dataset.run === id);
    const found = await (await get("/curve", { id })).json();
    if (chosen !== id) return;
    place.hidden = false;
    place.replaceChildren(node("h3", "", id));
    const fit = row[held.columns.indexOf("fit")];
    if (fit) place.append(node("p", "note fitted", fit));
    if (found)
      place.append(trainingCurve.draw(found, Math.min(540, place.clientWidth), 230),
        node("p", "note", `Training loss, ${trainingCurve.logged(found)}.`));
    else place.append(node("p", "missing", "This run has logged no training loss yet."));
    place.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  // ---- finding ----------------------------------------------------------------------------------------
  let typing = 0;
  byId("filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      asked.words = byId("filter").value;
      ask();
    }, 10);
  });
  document.addEventListener("show-run", (event) => {
    byId("filter").value = asked.words = event.detail;
    ask();
    byId("runs").scrollIntoView({ behavior: "smooth" });
  });
  new ResizeObserver(onceAFrame(() => { if (held) tryRefresh(); })).observe(pane);
  return { refresh, isBehind: () => isBehind };
};
