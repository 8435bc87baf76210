"use strict";
// Sorting: touching a heading sorts by it, touching it again turns the order round.
const value = cell => {
  const shown = cell.dataset.v ?? cell.textContent.replace(/[\s%]/g, "");
  return shown !== "" && isFinite(shown) ? Number(shown) : cell.textContent.toLowerCase();
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(one => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map(row => [value(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}
for (const field of document.querySelectorAll("input.find")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of field.parentElement.querySelectorAll("tbody tr")) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    }
  });
}
// Charts: the values nearest to the pointer.
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [360, 220, 46, 10, 10, 34];
for (const chart of document.querySelectorAll(".chart")) {
  const { x: name, frame: [x0, x1], lines } = JSON.parse(chart.dataset.values);
  const svg = chart.querySelector("svg");
  const rule = document.createElementNS("http://www.w3.org/2000/svg", "path");
  rule.setAttribute("class", "rule");
  svg.append(rule);
  const told = document.createElement("div");
  told.className = "told";
  told.hidden = true;
  chart.append(told);
  const show = event => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * WIDTH;
    const wanted = x0 + (place - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    const nearest = lines.map(([line, xs, ys]) => {
      const i = xs.reduce((best, x, i) => Math.abs(x - wanted) < Math.abs(xs[best] - wanted) ? i : best, 0);
      return { line, x: xs[i], y: ys[i] };
    });
    const one = nearest.reduce((a, b) => Math.abs(b.x - wanted) < Math.abs(a.x - wanted) ? b : a);
    const at = LEFT + (one.x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    rule.setAttribute("d", `M${at} ${TOP}V${HEIGHT - BOTTOM}`);
    told.textContent = [`${name} ${+one.x.toPrecision(4)}`, ...nearest.map(({ line, y }) => `${line} ${+y.toPrecision(4)}`)].join("\n");
    told.hidden = false;
    told.style.left = `${at / WIDTH * 100}%`;
    told.style.transform = `translateX(${at > WIDTH / 2 ? "calc(-100% - 8px)" : "8px"})`;
  };
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointerleave", () => { told.hidden = true; rule.setAttribute("d", ""); });
}
