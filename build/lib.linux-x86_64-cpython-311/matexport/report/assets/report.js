"use strict";
// Sort a table by a column: numbers as numbers, what is missing last both ways, equals in the order of the family.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const read = (row) => {
      const value = row.cells[column].dataset.value;
      return value === undefined ? null : head.dataset.kind === "number" ? Number(value) : value;
    };
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = original.map((row) => [read(row), row]);
      rows.sort(([one], [other]) => {
        if (one === null || other === null) return (one === null) - (other === null);
        return one < other ? -sign : one > other ? sign : 0;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
