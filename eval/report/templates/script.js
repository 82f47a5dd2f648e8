(() => {
  "use strict";

  const keyOf = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent;

  const sort = (table, head) => {
    const column = Number(head.dataset.column);
    const numeric = head.dataset.sort === "num";
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    const body = table.tBodies[0];
    const rows = [...body.rows].filter((row) => !("fixed" in row.dataset)).map((row) => [keyOf(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numeric ? parseFloat(a) - parseFloat(b) : a.localeCompare(b, "en");
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.querySelectorAll("[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head));
      head.append(button);
    }
  }

  // Copy tables as text. The name of a column begins with that of the heading that spans it.
  const textOf = (cell) => {
    const copy = cell.cloneNode(true);
    for (const small of copy.querySelectorAll("small")) small.remove();
    return copy.textContent.replace(/\s+/g, " ").trim();
  };
  const namesOf = (head) => {
    const grid = [...head.rows].map(() => []);
    [...head.rows].forEach((row, y) => {
      let x = 0;
      for (const cell of row.cells) {
        while (grid[y][x] !== undefined) x += 1;
        for (let down = 0; down < cell.rowSpan; down += 1)
          for (let right = 0; right < cell.colSpan; right += 1) grid[y + down][x + right] = textOf(cell);
      }
    });
    return grid[0].map((_, x) => [...new Set(grid.map((row) => row[x]))].filter(Boolean).join(" "));
  };
  const columnsOf = (table) => {
    const rows = [...table.tBodies[0].rows];
    return namesOf(table.tHead)
      .map((name, x) => ({ name, cells: rows.map((row) => row.cells[x]) }))
      .filter(({ cells }) => !cells.some((cell) => cell.classList.contains("axis")));
  };
  const minus = (text) => text.replaceAll("\u2212", "-");
  const asCsv = (table) => {
    const columns = [];
    for (const { name, cells } of columnsOf(table)) {
      const ends = cells.map((cell) => cell.querySelector("small")?.textContent.match(/^\[(.*), (.*)\]$/) ?? ["", "", ""]);
      columns.push([name, ...cells.map((cell) => (cell.classList.contains("num") && cell.dataset.key) || minus(textOf(cell)))]);
      if (ends.some(([all]) => all))
        for (const [place, end] of [[1, "low"], [2, "high"]])
          columns.push([`${name} ${end}`, ...ends.map((found) => minus(found[place]))]);
    }
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text === "\u2013" ? "" : text);
    return columns[0].map((_, y) => columns.map((column) => quoted(column[y])).join(",")).join("\n");
  };
  const asLatex = (table) => {
    const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "\u2212": "$-$", "\u2013": "--", "\u2026": "\\ldots{}" };
    const safe = (text) => text.replace(/[\\~^<>\u2212\u2013\u2026]|[&%$#_{}]/g, (c) => special[c] ?? `\\${c}`);
    const columns = columnsOf(table);
    const shown = (cell) => (cell.classList.contains("strong") ? `\\textbf{${safe(textOf(cell))}}` : safe(textOf(cell)));
    const lines = columns[0].cells.map((_, y) => columns.map(({ cells }) => shown(cells[y])).join(" & "));
    const kinds = columns.map(({ cells }) => (cells[0].classList.contains("num") || cells[0].dataset.key ? "r" : "l")).join("");
    const ends = (rows) => rows.map((row) => `${row} \\\\`);
    return [
      `\\begin{tabular}{${kinds}}`, "\\toprule", ...ends([columns.map(({ name }) => safe(name)).join(" & ")]),
      "\\midrule", ...ends(lines), "\\bottomrule", "\\end{tabular}",
    ].join("\n");
  };
  const copy = (text, status) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.readOnly = true;
    status.parentElement.querySelector("textarea")?.remove();
    status.parentElement.append(area);
    area.select();
    const done = document.execCommand("copy"); // the Clipboard API does not work in local files
    if (done) area.remove();
    status.textContent = done ? "copied" : "press Ctrl-C to copy";
  };
  for (const table of document.querySelectorAll("table.copied")) {
    const line = document.createElement("p");
    const status = document.createElement("span");
    line.className = "copy";
    status.role = "status";
    line.append("Copy as ");
    for (const [name, make] of [["LaTeX", asLatex], ["CSV", asCsv]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => copy(make(table), status));
      line.append(button, " ");
    }
    line.append(status);
    table.closest(".scroll").after(line);
  }

  const choice = document.getElementById("metric-choice");
  if (!choice) return; // leaderboards do not have it
  const cards = [...document.querySelectorAll(".card")];
  const show = (id) => {
    choice.value = id;
    for (const card of cards) card.hidden = card.id !== id;
  };
  const follow = () => {
    const id = location.hash.slice(1);
    const card = cards.find((one) => one.id === id);
    if (card) {
      show(id);
      card.scrollIntoView();
    }
  };
  choice.addEventListener("change", () => show(choice.value));
  window.addEventListener("hashchange", follow);
  choice.parentElement.hidden = false;
  show(cards[0].id);
  follow();
})();
