// Charts that the service drew, put into the page: only known shapes, known attributes, and no markup.

import { announce, drawing, element } from "./elements.js";
import { Problem, ask } from "./service.js";

const SHAPES = new Set(["svg", "g", "path", "rect", "line", "polyline", "polygon", "circle", "text", "tspan", "title", "desc"]);
const ATTRIBUTES = new Set([
  "aria-hidden", "aria-label", "class", "cx", "cy", "d", "dominant-baseline", "dx", "dy", "fill", "fill-opacity", "font-size",
  "font-weight", "height", "opacity", "points", "preserveAspectRatio", "r", "role", "rx", "ry", "stroke", "stroke-dasharray",
  "stroke-linecap", "stroke-linejoin", "stroke-opacity", "stroke-width", "text-anchor", "transform", "viewBox", "width",
  "x", "x1", "x2", "y", "y1", "y2",
]);
const HELD_STYLE = "data-style";

/** A drawing of the service as nodes of this page. */
export function chartNode(text) {
  // The policy of the page knows no style attributes; they are set as properties instead.
  const held = text.replaceAll(" style=", ` ${HELD_STYLE}=`);
  const parsed = new DOMParser().parseFromString(held, "image/svg+xml").documentElement;
  if (parsed.localName !== "svg") throw new Error("the service sent a drawing that is none");
  return rebuilt(parsed);
}

function rebuilt(node) {
  const copy = drawing(node.localName);
  for (const { name, value } of node.attributes) if (ATTRIBUTES.has(name)) copy.setAttribute(name, value);
  for (const rule of (node.getAttribute(HELD_STYLE) ?? "").split(";")) {
    const colon = rule.indexOf(":");
    const value = rule.slice(colon + 1).trim();
    if (colon > 0 && !/url\s*\(/i.test(value)) copy.style.setProperty(rule.slice(0, colon).trim(), value);
  }
  for (const child of node.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) copy.append(child.data);
    else if (child.nodeType === Node.ELEMENT_NODE && SHAPES.has(child.localName)) copy.append(rebuilt(child));
  }
  return copy;
}

/**
 * Show charts in their place; those that are there already are changed, so that what is open stays open.
 * @param {HTMLElement} place
 * @param {{name: string, title: string, svg: string, head: string[], rows: string[][]}[]} charts
 * @param {function(string): string} csvPath Where the table of a chart is had by its name.
 */
export function showCharts(place, charts, csvPath) {
  const shown = new Map([...place.children].map((figure) => [figure.dataset.chart, figure]));
  const figures = charts.map((chart) => {
    const figure = shown.get(chart.name) ?? emptyFigure(chart.name);
    fill(figure, chart, csvPath);
    return figure;
  });
  for (const figure of shown.values()) if (!figures.includes(figure)) figure.remove();
  // What is in its place already is not moved: that would take the focus from it.
  for (const [row, figure] of figures.entries()) {
    if (place.children[row] !== figure) place.insertBefore(figure, place.children[row] ?? null);
  }
}

function emptyFigure(name) {
  return element(
    "figure",
    { class: "chart", "data-chart": name },
    element("figcaption", {}, element("h3", {}), element("button", { type: "button", class: "copy csv" }, "CSV")),
    element("div", { class: "drawn" }),
    element("details", {}, element("summary", {}, "Figures"), element("div", { class: "scroll", tabindex: 0, role: "region" })),
  );
}

function fill(figure, chart, csvPath) {
  figure.querySelector("h3").textContent = chart.title;
  figure.querySelector(".drawn").replaceChildren(chartNode(chart.svg));
  const region = figure.querySelector(".scroll");
  region.setAttribute("aria-label", `Figures: ${chart.title}`);
  region.replaceChildren(table(chart));
  const button = figure.querySelector(".csv");
  button.setAttribute("aria-label", `Table of ${chart.title} as CSV`);
  button.onclick = () => save(csvPath(chart.name), button);
}

function table({ head, rows }) {
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, column) => cellOf(cell, column))))),
  );
}

function cellOf(cell, column) {
  return column === 0 ? element("th", { scope: "row" }, cell) : element("td", {}, cell);
}

async function save(path, button) {
  button.disabled = true;
  try {
    const [blob, name] = await ask(path, {}, async (response) => [await response.blob(), fileName(response)]);
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    announce(`Saved ${name}`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    announce(`${error.title}. ${error.detail}`);
    button.textContent = "No answer";
    setTimeout(() => {
      button.textContent = "CSV";
    }, 2500);
  } finally {
    button.disabled = false;
  }
}

function fileName(response) {
  const found = /filename="([a-z0-9.-]+)"/.exec(response.headers.get("Content-Disposition") ?? "");
  return found ? found[1] : "visitors.csv";
}
