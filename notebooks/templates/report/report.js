// A click, Enter or Space on a column's name sorts its table: by number if all cells have one.
for (const [index, table] of document.querySelectorAll(".wide > table").entries()) {
  table.parentElement.tabIndex = 0;  // so that the keyboard can scroll a wide table
  table.parentElement.setAttribute("role", "region");
  table.parentElement.setAttribute("aria-label", `Table ${index + 1}`);
  const heads = [...table.querySelectorAll("thead tr:last-child th")];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent.trim();
      const number = (row) => parseFloat(text(row).replaceAll(",", ""));
      const body = table.tBodies[0];
      const [full, empty] = [[], []];
      for (const row of body.rows) (["", "–"].includes(text(row)) ? empty : full).push(row);
      const numeric = full.every((row) => !Number.isNaN(number(row)));
      full.sort((a, b) => (numeric ? number(a) - number(b) : text(a).localeCompare(text(b))));
      if (!up) full.reverse();
      body.append(...full, ...empty);
    });
  });
}
// On paper every section is open; afterwards those that were folded fold again.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((part) => (part.open = true));
});
addEventListener("afterprint", () => folded.forEach((part) => (part.open = false)));
