(() => {
  "use strict";

  const keyOf = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent;

  const sort = (table, head) => {
    const column = Number(head.dataset.column);
    const numeric = head.dataset.sort === "num";
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
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

  const choice = document.getElementById("metric-choice");
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
