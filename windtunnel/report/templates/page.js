// Sortable tables, finding a run in the table, the chart. Everything can be read without this script.
(() => {
  "use strict";
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  // Numbers before words, and what is absent last in either direction.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => compare(a, b, sign));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  const filter = document.getElementById("filter");
  if (filter) {
    filter.hidden = false;
    document.getElementById("sorts").hidden = false;
    const rows = [...document.querySelectorAll("#runs-table tbody tr")];
    const count = document.getElementById("filter-count");
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  }

  document.addEventListener("show-run", (event) => {
    for (const row of document.querySelectorAll("#runs-table tbody tr")) {
      const found = row.dataset.run === event.detail;
      row.classList.toggle("found", found);
      if (found) row.scrollIntoView({ block: "center", behavior: "smooth" });
    }
  });

  const source = document.getElementById("chart-data");
  if (source) {
    const host = document.getElementById("chart");
    lossChart(host, JSON.parse(source.textContent), document.getElementById("moved"));
  }
})();
