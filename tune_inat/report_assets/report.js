"use strict";
(() => {
  const root = document.documentElement;
  const token = (value) => {
    const found = /^var\((--[\w-]+)\)$/.exec(value);
    return found ? getComputedStyle(root).getPropertyValue(found[1]).trim() : value;
  };
  // Colours are named in the figures and looked up here, so that charts follow the page's scheme.
  const coloured = (value, isColour) => {
    if (typeof value === "string") return isColour ? token(value) : value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, isColour));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(
      ([key, item]) => [key, coloured(item, isColour || /color(scale|way)?$/.test(key))]));
  };

  const figures = [...document.querySelectorAll(".plot")].map((plot) => ({
    plot, figure: JSON.parse(document.getElementById(`${plot.id}-data`).textContent), isDrawn: false }));
  const draw = (item) => {
    const { data, layout } = coloured(item.figure, false);
    const text = token("var(--text)"), line = token("var(--line)"), card = token("var(--card)");
    const whole = { margin: { l: 60, r: 20, t: 20, b: 50 }, ...layout, autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 12, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: text } } };
    for (const axis of Object.keys(whole).filter((key) => /^[xy]axis\d*$/.test(key)).concat(["xaxis", "yaxis"]))
      whole[axis] = { automargin: true, exponentformat: "power", ...whole[axis], gridcolor: line, zerolinecolor: line, linecolor: line };
    Plotly.react(item.plot, data, whole, { displayModeBar: false, responsive: true });
    item.isDrawn = true;
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      near.unobserve(entry.target);
      draw(figures.find((item) => item.plot === entry.target));
    }
  }, { rootMargin: "600px" });
  figures.forEach((item) => near.observe(item.plot));
  matchMedia("(prefers-color-scheme: dark)").addEventListener(
    "change", () => figures.filter((item) => item.isDrawn).forEach(draw));
  addEventListener("beforeprint", () => { root.dataset.print = ""; figures.forEach(draw); });
  addEventListener("afterprint", () => { delete root.dataset.print; figures.filter((item) => item.isDrawn).forEach(draw); });

  const key = (row, column) => {
    const cell = row.cells[column];
    return "order" in cell.dataset ? Number(cell.dataset.order) : cell.textContent;
  };
  const isMissing = (value) => value === "" || value === "–";
  const compare = (a, b, sign) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b); // last either way
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      rows.sort((a, b) => compare(a[0], b[0], order === "ascending" ? 1 : -1));
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
      body.append(...rows.map((pair) => pair[1]));
    }));
  }
  for (const input of document.querySelectorAll("input[data-filters]")) {
    const body = document.getElementById(input.dataset.filters).tBodies[0];
    const count = document.getElementById(`${input.dataset.filters}-count`);
    const texts = new Map([...body.rows].map((row) => [row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase()]));
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of texts) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = words.length ? `${shown.toLocaleString("en")} of ${texts.size.toLocaleString("en")} rows` : `${texts.size.toLocaleString("en")} rows`;
    });
  }
})();
