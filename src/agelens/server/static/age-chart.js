// An age distribution as a chart: a bar an age, the interval shaded, mean and 18 marked.

import { drawing, percent } from "./elements.js";

const WIDTH = 340;
const TOP = 18;
const BASE = 104;
const HEIGHT = 122;
const LEFT = 8;
const STEP = (WIDTH - 2 * LEFT) / 101;
const OF_AGE = 18;
const WORD_WIDTH = 50;

const at = (age) => LEFT + age * STEP;

/**
 * @param {Object} age As the service tells it, with its distribution.
 * @returns {SVGElement}
 */
export function ageChart(age) {
  const { low, high, level } = age.interval;
  const most = Math.max(...age.distribution);
  const mean = at(age.mean + 0.5);
  const words =
    `Probability of each age. Mean ${age.mean.toFixed(0)}; ` +
    `${percent(level)} between ${low} and ${high}.`;
  return drawing(
    "svg",
    { class: "age-chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words },
    drawing("rect", { class: "interval", x: at(low), y: TOP, width: (high + 1 - low) * STEP, height: BASE - TOP }),
    drawing("path", { class: "outside", d: bars(age.distribution, most, (year) => year < low || year > high) }),
    drawing("path", { class: "inside", d: bars(age.distribution, most, (year) => year >= low && year <= high) }),
    drawing("line", { class: "base", x1: LEFT, x2: WIDTH - LEFT, y1: BASE, y2: BASE }),
    ...[0, 20, 40, 60, 80, 100].map((year) => tick(year)),
    drawing("line", { class: "of-age", x1: at(OF_AGE), x2: at(OF_AGE), y1: TOP, y2: BASE }),
    ...marks(mean, age.mean),
  );
}

function bars(distribution, most, belongs) {
  return distribution
    .map((probability, year) => {
      const height = ((BASE - TOP - 4) * probability) / most;
      if (!belongs(year) || height < 0.05) return "";
      return `M${(at(year) + 0.3).toFixed(2)} ${BASE}v${(-height).toFixed(2)}h${(STEP - 0.6).toFixed(2)}V${BASE}z`;
    })
    .join("");
}

function tick(year) {
  const x = at(year + 0.5);
  return drawing(
    "g",
    {},
    drawing("line", { class: "base", x1: x, x2: x, y1: BASE, y2: BASE + 3 }),
    drawing("text", { class: "tick", x, y: BASE + 14, "text-anchor": year === 100 ? "end" : "middle" }, year === 100 ? "100+" : String(year)),
  );
}

/** Lines and words at the mean and at 18; the words stay apart from each other and inside. */
function marks(x, years) {
  const ofAge = at(OF_AGE);
  const near = Math.abs(x - ofAge) < WORD_WIDTH;
  let [meanX, meanAnchor, ageAnchor] = [x, "middle", "middle"];
  if (x < ofAge) [meanX, meanAnchor, ageAnchor] = x < WORD_WIDTH + LEFT ? [LEFT, "start", "start"] : [x, "end", "start"];
  else if (near) [meanAnchor, ageAnchor] = ["start", "end"];
  else if (x > WIDTH - WORD_WIDTH / 2) meanAnchor = "end";
  return [
    drawing("line", { class: "mean", x1: x, x2: x, y1: TOP - 3, y2: BASE }),
    drawing("text", { class: "mean-text", x: meanX, y: 11, "text-anchor": meanAnchor }, `mean ${years.toFixed(0)}`),
    drawing("text", { class: "of-age-text", x: ofAge, y: 11, "text-anchor": ageAnchor }, "18"),
  ];
}
