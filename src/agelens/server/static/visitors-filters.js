// What is chosen: a period and a part of the sites, kept in the address of the page.

import { byId, element, show } from "./elements.js";

const NAMES = ["site", "camera", "zone"];

/** The choices of the page, filled with what can be asked for. */
export class Filters {
  #sites = [];
  #onChange;

  /** @param {function()} onChange Called when something else is chosen. */
  constructor(onChange) {
    this.#onChange = onChange;
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("filters").addEventListener("change", (event) => this.#changed(event.target.id));
  }

  /** Fill the choices, and choose what the address names where that is there. */
  fill({ sites }) {
    this.#sites = sites;
    const wanted = new URLSearchParams(location.search);
    options(byId("site"), "All sites", sites.map((site) => [site.name, site.title]));
    show(byId("site-field"), sites.length > 1);
    for (const name of NAMES) {
      if (name !== "site") this.#fillParts();
      choose(byId(name), wanted.get(name) ?? "");
    }
    choose(byId("period"), wanted.get("period") ?? "today");
    byId("first").value = wanted.get("first") ?? this.today;
    byId("last").value = wanted.get("last") ?? byId("first").value;
    this.#showDays();
  }

  /** The day by the calendar of the site that is chosen. */
  get today() {
    return (this.#site ?? this.#sites[0])?.today ?? new Date().toISOString().slice(0, 10);
  }

  /** The time zone of the site that is chosen. */
  get zone() {
    return (this.#site ?? this.#sites[0])?.timezone ?? "UTC";
  }

  /** Whether all that is chosen goes by the same clocks. */
  get hasOneZone() {
    return this.#site !== undefined || new Set(this.#sites.map((site) => site.timezone)).size === 1;
  }

  get #site() {
    const name = byId("site").value || (this.#sites.length === 1 ? this.#sites[0].name : "");
    return this.#sites.find((site) => site.name === name);
  }

  /** The days as they are asked for: [first, last]; null while they are not whole. */
  get days() {
    const { value } = byId("period");
    if (value !== "days") return daysOf(value, this.today);
    const [first, last] = [byId("first").value, byId("last").value];
    return first && last && first <= last ? [first, last] : null;
  }

  /** The choices as a query of the service. */
  get query() {
    const [first, last] = this.days;
    const found = new URLSearchParams({ first, last });
    for (const name of NAMES) if (byId(name).value) found.set(name, byId(name).value);
    return found;
  }

  #changed(id) {
    if (id === "site") byId("camera").value = "";
    if (id === "site" || id === "camera") this.#fillParts();
    this.#showDays();
    this.#remember();
    if (this.days) this.#onChange();
  }

  /** Cameras of the site, and zones of the camera, that are chosen. */
  #fillParts() {
    const sites = this.#site ? [this.#site] : this.#sites;
    const held = { camera: byId("camera").value, zone: byId("zone").value };
    const cameras = [...new Set(sites.flatMap((site) => site.cameras))];
    options(byId("camera"), "All cameras", cameras.map((name) => [name, name]));
    choose(byId("camera"), held.camera);
    const zones = sites.flatMap((site) => site.zones);
    const camera = byId("camera").value;
    const names = [...new Set(zones.filter((one) => !camera || one.camera === camera).map((one) => one.zone))];
    options(byId("zone"), "Everywhere", names.map((name) => [name, name]));
    choose(byId("zone"), held.zone);
    show(byId("zone-field"), zones.length > 0);
  }

  #showDays() {
    const own = byId("period").value === "days";
    for (const id of ["first-field", "last-field"]) show(byId(id), own);
    byId("last").min = byId("first").value;
    byId("last").setAttribute("aria-invalid", String(own && this.days === null));
  }

  #remember() {
    const kept = new URLSearchParams({ period: byId("period").value });
    if (byId("period").value === "days") {
      for (const id of ["first", "last"]) kept.set(id, byId(id).value);
    }
    for (const name of NAMES) if (byId(name).value) kept.set(name, byId(name).value);
    history.replaceState(null, "", `?${kept}`);
  }
}

function options(select, all, choices) {
  select.replaceChildren(
    element("option", { value: "" }, all),
    ...choices.map(([value, words]) => element("option", { value }, words)),
  );
}

function choose(select, value) {
  const there = [...select.options].some((option) => option.value === value);
  if (there) select.value = value;
}

/** First and last day of a named period; days are "2026-03-09". */
export function daysOf(name, today) {
  const day = new Date(`${today}T00:00Z`);
  const weekday = (day.getUTCDay() + 6) % 7;
  const [year, month] = [day.getUTCFullYear(), day.getUTCMonth()];
  const plus = (count) => text(new Date(day.getTime() + 86_400_000 * count));
  return {
    today: [today, today],
    yesterday: [plus(-1), plus(-1)],
    week: [plus(-weekday), plus(6 - weekday)],
    "last-week": [plus(-weekday - 7), plus(-weekday - 1)],
    month: [text(new Date(Date.UTC(year, month, 1))), text(new Date(Date.UTC(year, month + 1, 0)))],
    "last-month": [text(new Date(Date.UTC(year, month - 1, 1))), text(new Date(Date.UTC(year, month, 0)))],
  }[name];
}

function text(day) {
  return day.toISOString().slice(0, 10);
}
