// One face in words, figures and a chart.

import { ageChart } from "./age-chart.js";
import { element, percent } from "./elements.js";

/** A face in one sentence, for a label. */
export function inWords(face) {
  return `${ageWords(face.age)}${face.gender ? `, ${genderWords(face.gender)}` : ""}`;
}

/** A face in a few characters, for a mark on the picture. */
export function inShort(face) {
  return face.age.abstained ? "?" : face.age.mean.toFixed(0);
}

function ageWords(age) {
  if (age.abstained) return "cannot tell the age";
  const { low, high, level } = age.interval;
  return `looks about ${age.mean.toFixed(0)}, ${percent(level)} between ${low} and ${high}`;
}

function genderWords(gender) {
  return gender.label === "uncertain"
    ? "perceived gender uncertain"
    : `perceived as ${gender.label} (${percent(gender.probability)})`;
}

/** Headline, chart and figures of a face; the headline has the id that is given. */
export function faceParts(face, headlineId, level = "h3") {
  return face.age.abstained ? abstained(face, headlineId, level) : estimated(face, headlineId, level);
}

function abstained(face, headlineId, level) {
  return [
    element(level, { id: headlineId, class: "headline" }, "Cannot tell"),
    element("p", {}, "The picture allows no estimate of this face:"),
    element("ul", { class: "reasons" }, ...face.quality.reasons.map((reason) => element("li", {}, reason))),
    facts([["Perceived gender", genderValue(face.gender)], ...qualityFacts(face)]),
  ];
}

function estimated(face, headlineId, level) {
  const { age } = face;
  return [
    element(
      level,
      { id: headlineId, class: "headline" },
      `About ${age.mean.toFixed(0)}`,
      element("small", {}, ` ${percent(age.interval.level)} between ${age.interval.low} and ${age.interval.high}`),
    ),
    ageChart(age),
    facts([
      ["18 or over", share(age.at_least_18)],
      ["Perceived gender", genderValue(face.gender)],
    ]),
    element(
      "details",
      {},
      element("summary", {}, "Age groups and quality"),
      groups(age.groups),
      facts([["Median, spread", `${age.median}, ± ${age.std.toFixed(1)} years`], ...qualityFacts(face)]),
    ),
  ];
}

function facts(rows) {
  const cells = rows
    .filter(([, value]) => value !== null)
    .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  return element("dl", { class: "facts" }, ...cells);
}

function share(probability) {
  return element("span", { class: "share" }, bar(probability), percent(probability));
}

function bar(probability) {
  const filled = element("i");
  filled.style.width = `${100 * probability}%`;
  return element("span", { class: "bar-of", "aria-hidden": "true" }, filled);
}

function genderValue(gender) {
  if (gender === null) return null;
  if (gender.label !== "uncertain") return `${gender.label}, ${percent(gender.probability)}`;
  return `uncertain (female ${percent(gender.female_probability)})`;
}

function groups(all) {
  const rows = all.map((group) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, groupName(group)),
      element("td", {}, bar(group.probability)),
      element("td", { class: "number" }, percent(group.probability)),
    ),
  );
  return element("table", { class: "groups" }, element("caption", { class: "unseen" }, "Probability of each age group"), element("tbody", {}, ...rows));
}

function groupName(group) {
  if (group.high >= 100) return `${group.low} or over`;
  return group.low === group.high ? String(group.low) : `${group.low}–${group.high}`;
}

const ORIGINS = { detector: null, caller: "given", whole_picture: "the whole picture; no face was found in it" };

function qualityFacts(face) {
  const { quality } = face;
  const turned = quality.yaw === null ? null : sideways(quality.yaw);
  return [
    ["Size", `${quality.size_px} px`],
    ["Sharpness", `${quality.sharpness.toFixed(2)} (portrait: about 1)`],
    ["Light", quality.exposure.toFixed(2)],
    ["Turned", turned],
    ["Found with", face.origin === "detector" ? `score ${face.score.toFixed(2)}` : null],
    ["Face", ORIGINS[face.origin] ?? null],
  ];
}

function sideways(yaw) {
  const degrees = Math.abs(Math.round(yaw));
  return degrees === 0 ? "to the front" : `${degrees}° to the ${yaw > 0 ? "right" : "left"} of the picture`;
}
