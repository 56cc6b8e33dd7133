// A screen that shows what the rules choose; by itself the fallback when the server is away.

import { byId, element, percent, show } from "./elements.js";
import { events } from "./events.js";
import { useKey } from "./key.js";
import { Problem, ask } from "./service.js";

/** Without any sign of life for so long, nobody knows who is there. */
const SILENCE_MS = 6000;
/** After the server refused, or is not there yet. */
const RETRY_MS = 5000;
const REST_MS = 4000;
const FADE_MS = 700;

const WORDS = {
  waiting: "Connecting…",
  live: "Live",
  blind: "No camera",
  lost: "Not connected; showing the fallback",
  unruled: "The server has no rules (--audience-rules)",
};

const state = { book: null, slot: null, newest: null, drawing: false, pictures: new Map() };

// --- content ------------------------------------------------------------------------------------------------

/** The content that the rules choose from; kept, so that the fallback is there when the server is not. */
async function loadBook() {
  const book = await ask("/v1/audience/slots");
  if (state.book?.revision === book.revision) return;
  for (const url of state.pictures.values()) URL.revokeObjectURL(url);
  state.book = book;
  state.pictures = new Map();
  state.slot = null;
  const pictured = Object.keys(book.slots).filter((name) => book.slots[name].has_image);
  await Promise.all(pictured.map(loadPicture));
}

async function loadPicture(name) {
  try {
    const blob = await ask(`/v1/audience/slots/${encodeURIComponent(name)}/image`, {}, (answer) => answer.blob());
    state.pictures.set(name, URL.createObjectURL(blob));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    // The words do without their picture.
  }
}

function showSlot(name) {
  if (state.book === null || name === state.slot) return;
  const slot = state.book.slots[name];
  if (slot === undefined) return;
  state.slot = name;
  document.body.dataset.slot = name;
  const picture = state.pictures.get(name);
  const slide = element(
    "article",
    { class: picture ? "slide pictured" : "slide", "data-theme": slot.theme },
    picture ? element("img", { src: picture, alt: "" }) : null,
    slot.title || slot.text
      ? element(
          "div",
          { class: "words" },
          slot.title ? element("h1", {}, slot.title) : null,
          slot.text ? element("p", {}, slot.text) : null,
        )
      : null,
  );
  const before = [...byId("stage").children];
  byId("stage").append(slide);
  // Two frames: the first lays the slide out unseen, so that the second has something to fade from.
  requestAnimationFrame(() => requestAnimationFrame(() => slide.classList.add("shown")));
  for (const one of before) one.setAttribute("aria-hidden", "true");
  setTimeout(() => before.forEach((one) => one.remove()), FADE_MS);
}

// --- the stream ---------------------------------------------------------------------------------------------

function connection(how) {
  document.body.dataset.connection = how;
  if (byId("connection").textContent !== WORDS[how]) byId("connection").textContent = WORDS[how];
}

/** Follow the audience for ever; whatever goes wrong, the fallback is shown meanwhile. */
async function run() {
  const { signal } = new AbortController();
  for (;;) {
    try {
      await loadBook();
      for await (const { event, data } of events("/v1/audience/events", { signal, silenceMs: SILENCE_MS, onState })) {
        if (event === "audience") take(JSON.parse(data));
      }
      lose();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      lose(error.status === 404 ? "unruled" : "lost");
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function onState(connected) {
  if (!connected) {
    lose();
    return;
  }
  try {
    // Whoever was away may come back to other rules.
    await loadBook();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
  }
  draw();
}

function take(told) {
  // Of events that come together only the newest is drawn.
  if (!state.drawing) setTimeout(draw);
  state.drawing = true;
  state.newest = told;
}

function draw() {
  state.drawing = false;
  const told = state.newest;
  if (told !== null) {
    connection(told.cameras > 0 ? "live" : "blind");
    if (told.showing) showSlot(told.showing.slot);
  }
  if (!byId("numbers").hidden) showNumbers();
}

/** The stream is gone: what was true is true no longer. */
function lose(how = "lost") {
  connection(how);
  state.newest = null;
  if (state.book !== null) showSlot(state.book.fallback);
  draw();
}

// --- for whoever sets it up -----------------------------------------------------------------------------------

function showNumbers() {
  const told = state.newest;
  const facts = told
    ? [
        ["In view", told.people],
        ["Looking here", told.attentive],
        ["Perceived as female", told.female?.share === null || told.female === null ? "–" : percent(told.female.share)],
        ["Gender uncertain", told.gender_uncertain ?? "–"],
        ["Cameras", told.cameras],
        ["On the screen", told.showing ? `${told.showing.slot} (${told.showing.rule ?? "fallback"})` : "no rules"],
      ]
    : [["", "Nothing is known"]];
  byId("facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
  byId("groups").tBodies[0].replaceChildren(...(told?.groups ?? []).map(groupRow));
}

function groupRow(group) {
  const share = group.share === null ? "–" : percent(group.share);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, group.name),
    element("td", {}, group.count.toFixed(1)),
    element("td", {}, share),
    element("td", {}, group.share === null ? "–" : percent(group.confidence)),
  );
}

byId("numbers-button").addEventListener("click", () => {
  show(byId("numbers"), byId("numbers").hidden);
  byId("numbers-button").setAttribute("aria-expanded", String(!byId("numbers").hidden));
  showNumbers();
});
byId("full-button").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch(() => {});
});

let resting = null;
function wake() {
  document.body.classList.remove("resting");
  clearTimeout(resting);
  resting = setTimeout(() => {
    // Who goes through the page by keyboard must see where they are.
    if (!byId("numbers").hidden || document.activeElement?.closest(".controls, dialog")) return;
    document.body.classList.add("resting");
  }, REST_MS);
}
for (const event of ["pointermove", "pointerdown", "keydown"]) document.addEventListener(event, wake);

// A screen without a keyboard has its key in the address, after the #: that part is sent to no server.
const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given !== null) {
  useKey(given);
  history.replaceState(null, "", location.pathname + location.search);
}

wake();
run();
