// The page of visitors: a period of the store, and the cameras at this moment.

import { byId, element, show } from "./elements.js";
import { Problem, ask, showProblem } from "./service.js";
import { showCharts } from "./visitors-charts.js";
import { Filters } from "./visitors-filters.js";
import { followAudience } from "./visitors-live.js";

const PERIOD_EVERY_MS = 60_000;
const CAMERAS_EVERY_MS = 5_000;
const GAPS_SHOWN = 30;

const state = { places: null, asked: 0, statuses: [], watched: false, overview: null };
const filters = new Filters(loadPeriod);

// --- words --------------------------------------------------------------------------------------------------

const TOO_FEW = "too few to show";

function count(value) {
  return value === null ? TOO_FEW : value.toLocaleString("en");
}

function change(value) {
  if (value === null) return "–";
  const rounded = Math.round(100 * value);
  return `${rounded > 0 ? "+" : rounded < 0 ? "−" : "±"}${Math.abs(rounded)} %`;
}

function seconds(value) {
  if (value === null) return TOO_FEW;
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${String(Math.round(value % 60)).padStart(2, "0")} s`;
}

function share(value) {
  return value === null ? "–" : `${Math.round(100 * value)} %`;
}

function hours(value) {
  return value === 0 ? "0 h" : value < 10 ? `${value.toFixed(1)} h` : `${Math.round(value).toLocaleString("en")} h`;
}

function moment(text, zone, style = {}) {
  return new Date(text).toLocaleString("en-GB", { timeZone: zone, day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", ...style });
}

// --- the period ---------------------------------------------------------------------------------------------

async function loadPlaces() {
  try {
    state.places = await ask("/v1/visitors");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    failed(error, loadPlaces);
    return;
  }
  filters.fill(state.places);
  show(byId("setup-link"));
  if (state.places.live) followAudience();
  await Promise.all([loadPeriod(), loadCameras()]);
}

function failed(error, again) {
  showProblem(byId("problem"), error, again);
  show(byId("loading"), false);
  byId("period-content").setAttribute("aria-busy", "false");
}

async function loadPeriod({ quietly = false } = {}) {
  state.asked += 1;
  const asked = state.asked;
  const query = filters.query;
  if (!quietly) byId("period-content").setAttribute("aria-busy", "true");
  let told;
  try {
    told = await ask(`/v1/visitors/overview?${query}`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (asked === state.asked && !quietly) failed(error, loadPeriod);
    return;
  }
  // Something else may have been chosen meanwhile.
  if (asked !== state.asked) return;
  showProblem(byId("problem"), null);
  show(byId("loading"), false);
  showPeriod(told, query);
  byId("period-content").setAttribute("aria-busy", "false");
}

function showPeriod({ title, against, overview, charts }, query) {
  state.overview = overview;
  byId("period-title").textContent = title;
  show(byId("period-title"));
  byId("alarms").replaceChildren(...byCamera(overview.alarms).map(alarmNotice));
  byId("figures").replaceChildren(...figures(overview, against));
  byId("profile-reason").textContent = overview.profile.reason;
  show(byId("profile-reason"), overview.profile.reason !== "");
  showCharts(byId("charts"), charts, (name) => `/v1/visitors/csv?${new URLSearchParams([...query, ["chart", name]])}`);
  byId("notes").replaceChildren(...overview.notes.map((note) => element("li", {}, note)));
  show(byId("notes-section"), overview.notes.length > 0);
  showGaps(overview.gaps);
  showCameras();
}

/** Alarms of one camera together, in the order in which the cameras first come. */
function byCamera(alarms) {
  const found = new Map();
  for (const alarm of alarms) {
    const name = JSON.stringify([alarm.site, alarm.camera]);
    found.set(name, [...(found.get(name) ?? []), alarm]);
  }
  return [...found.values()];
}

function alarmNotice(alarms) {
  return element(
    "div",
    { class: "notice warn" },
    element("b", {}, `${alarms[0].camera}: something has changed`),
    element("ul", { class: "alarm-words" }, ...alarms.map((alarm) => element("li", {}, alarm.words))),
  );
}

function figures(overview, against) {
  const { stay } = overview;
  const clock = moment(overview.until, filters.zone, { day: undefined, month: undefined });
  const running = overview.is_running ? `until ${clock}${filters.hasOneZone ? "" : ` in ${filters.zone}`}` : "";
  return [
    figure("Visitors", count(overview.visitors), running),
    ...against.map(comparison),
    figure("In view", seconds(stay.seconds), "on average"),
    figure("Looking", seconds(stay.attentive_seconds), stay.attentive_share === null ? "" : `${share(stay.attentive_share)} of the time in view`),
    figure("Watched", hours(overview.watched_hours), `of ${hours(overview.expected_hours)} as usual`),
  ];
}

function comparison({ title, before, change: changed }) {
  return figure(`Against ${title}`, change(changed), before === null ? "too few, or not watched, then" : `${count(before)} then`);
}

function figure(name, value, words) {
  const few = value === TOO_FEW ? " few" : "";
  return element("div", {}, element("dt", {}, name), element("dd", { class: `figure${few}` }, value), words ? element("dd", { class: "quiet" }, words) : null);
}

function showGaps(gaps) {
  show(byId("gaps-panel"), gaps.length > 0);
  const lines = gaps.slice(0, GAPS_SHOWN).map((gap) => `${gap.camera}: ${moment(gap.start, filters.zone)} to ${moment(gap.end, filters.zone)}, ${hours(gap.hours)}`);
  if (gaps.length > GAPS_SHOWN) lines.push(`and ${gaps.length - GAPS_SHOWN} shorter ones`);
  byId("gaps").replaceChildren(...lines.map((line) => element("li", {}, line)));
}

// --- the cameras --------------------------------------------------------------------------------------------

async function loadCameras() {
  try {
    const told = await ask("/v1/visitors/cameras");
    state.statuses = told.cameras;
    state.watched = told.watched;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return;
  }
  showCameras();
}

const WORKING = new Set(["running", "ended", "done"]);

const COLUMNS = [
  ["Camera", (row) => [row.camera, state.places.sites.length > 1 ? element("small", {}, titleOf(row.site)) : null]],
  ["Now", (row) => [stateMark(row.status)]],
  ["Visitors", (row) => [row.part ? count(row.part.visitors) : "–"]],
  ["Watched", (row) => [row.part ? hours(row.part.watched_hours) : "–"]],
  ["Missing", (row) => [row.part ? hours(row.part.missing_hours) : "–"]],
  ["Usable faces", (row) => [row.part ? share(row.part.usable_share) : "–"]],
  ["Quality", (row) => [row.part ? share(row.part.quality) : "–"]],
  ["Frames dropped", (row) => [row.part ? share(row.part.dropped_share) : "–"]],
  ["Reconnected", (row) => [row.part ? String(row.part.reconnects) : "–"]],
  ["Down", (row) => [row.part ? hours(row.part.down_hours) : "–"]],
];

function titleOf(site) {
  return state.places.sites.find((one) => one.name === site)?.title ?? site;
}

function stateMark(status) {
  if (!status) return "–";
  const silent = status.state === "running" && status.silent_s !== null && status.silent_s > 10 ? `, silent for ${Math.round(status.silent_s)} s` : "";
  const kind = WORKING.has(status.state) && !silent ? "good" : status.state === "down" || status.state === "failed" ? "bad" : "warn";
  return element("span", { class: `state ${kind}` }, `${status.state}${silent}`, status.message ? element("small", {}, status.message) : null);
}

/** Cameras of the period, and those that are watched now, as one table. */
function showCameras() {
  const rows = new Map();
  const rowOf = ({ site, camera }) => {
    const name = JSON.stringify([site, camera]);
    if (!rows.has(name)) rows.set(name, { site, camera });
    return rows.get(name);
  };
  for (const part of state.overview?.cameras ?? []) rowOf(part).part = part;
  for (const status of state.statuses.filter(isChosen)) rowOf(status).status = status;
  const columns = state.watched ? COLUMNS : COLUMNS.filter(([name]) => name !== "Now");
  byId("cameras-table").classList.toggle("live-state", state.watched);
  byId("cameras-head").replaceChildren(...columns.map(([name]) => element("th", { scope: "col" }, name)));
  byId("cameras").replaceChildren(
    ...[...rows.values()].map((row) =>
      element("tr", {}, ...columns.map(([, cell], column) => element(column ? "td" : "th", { scope: column ? null : "row" }, ...cell(row)))),
    ),
  );
  show(byId("cameras-section"), rows.size > 0);
}

function isChosen({ site, camera }) {
  return [["site", site], ["camera", camera]].every(([id, name]) => byId(id).value === "" || byId(id).value === name);
}

// --- again and again ----------------------------------------------------------------------------------------

setInterval(() => {
  if (!document.hidden && state.overview?.is_running) loadPeriod({ quietly: true });
}, PERIOD_EVERY_MS);
setInterval(() => {
  if (!document.hidden && state.watched) loadCameras();
}, CAMERAS_EVERY_MS);
document.addEventListener("key", loadPlaces);
loadPlaces();
