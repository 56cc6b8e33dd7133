// Who is in view at this moment.

import { byId, counted, element, percent, show } from "./elements.js";
import { events } from "./events.js";
import { Problem } from "./service.js";

const LATE_S = 5;

let running = null;

/** Show it from now on, where the service tells it. */
export async function followAudience() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  show(byId("live"));
  try {
    for await (const { event, data } of events("/v1/audience/events", { signal, onState: showConnection })) {
      if (event === "audience") showState(JSON.parse(data));
    }
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    show(byId("live"), false);
  }
}

function showConnection(connected) {
  byId("live").classList.toggle("lost", !connected);
  if (!connected) byId("live-words").textContent = "The connection is lost; trying again.";
}

function showState(state) {
  const blind = state.cameras === 0;
  byId("live").classList.toggle("lost", blind);
  byId("people").textContent = blind ? "–" : String(state.people);
  byId("attention").textContent =
    blind || state.people === 0 ? "" : `${counted(state.people, "person", "people").replace(/^\d+ /, "")}, ${state.attentive} looking`;
  const shares = blind ? [] : [...state.groups, ...(state.female ? [{ ...state.female, name: "perceived as female" }] : [])];
  byId("groups").replaceChildren(...shares.filter((group) => group.share !== null).map(groupItem));
  byId("live-words").textContent = wordsOf(state);
}

function wordsOf({ cameras, people, groups, age_s: age }) {
  if (cameras === 0) return "No camera was heard from lately, so that nobody knows who is there.";
  const late = age !== null && age > LATE_S ? `, ${Math.round(age)} s old` : "";
  const few = people > 0 && groups.length === 0 ? " Too few for shares of ages and gender." : "";
  return `By ${counted(cameras, "camera")}, as the faces tell${late}; nothing of it is stored.${few}`;
}

function groupItem({ name, share }) {
  const bar = element("span", { class: "bar-of", "aria-hidden": "true" }, element("span", {}));
  bar.firstChild.style.width = `${100 * share}%`;
  return element("li", {}, element("span", { class: "group-name" }, name), bar, element("span", { class: "group-share" }, percent(share)));
}
