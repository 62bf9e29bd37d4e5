// Tables are sorted by a click on a heading: largest first, smallest first, as they were.
// A group is a row with all that belongs to it; what has no number stays below.
for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells];
  const before = [...table.tBodies];
  const chosen = table.parentElement.previousElementSibling?.querySelector("select");
  let column = -1, order = "none";

  const valueOf = (body) => {
    const row = column && chosen ? body.querySelector(`tr.${chosen.value}`) : body.rows[0];
    return row?.cells[column]?.dataset.value ?? "";
  };
  const compare = (a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (!x || !y) return !x - !y;
    const numbers = !isNaN(x) && !isNaN(y);
    const up = numbers ? x - y : x.localeCompare(y);
    return order === "ascending" ? up : -up;
  };
  const arrange = () => {
    const bodies = order === "none" ? before : [...before].sort(compare);
    table.append(...bodies);
    headings.forEach((heading, n) =>
      heading.setAttribute("aria-sort", n === column ? order : "none"));
  };
  headings.forEach((heading, n) => heading.querySelector("button").addEventListener("click", () => {
    const orders = ["descending", "ascending", "none"];
    if (heading.dataset.first === "ascending") orders.splice(0, 2, "ascending", "descending");
    order = n === column ? orders[(orders.indexOf(order) + 1) % 3] : orders[0];
    column = n;
    arrange();
  }));
  chosen?.addEventListener("change", arrange);
}
