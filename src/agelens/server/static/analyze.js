// The page for a photograph or the camera: what is in it, face by face.

import { Camera, CameraError, hasSeveralCameras } from "./camera.js";
import { announce, byId, copyButton, counted, element, quoted, show } from "./elements.js";
import { faceParts, inShort, inWords } from "./face-words.js";
import { key } from "./key.js";
import { Live } from "./live.js";
import { Problem, ROOT, ask, showProblem } from "./service.js";

const THUMBNAIL_PX = 112;
const AGE_GROUPS = byId("age-groups").defaultValue;

const state = {
  picture: null, // { blob, name, url }
  camera: null,
  live: null,
  facing: "user",
  asking: null, // AbortController of the request under way
  models: [],
};

// --- options ---------------------------------------------------------------------------------------

/** Options that differ from the service's own, by the names of its parameters. */
function options() {
  const chosen = {};
  if (byId("model").value) chosen.model = byId("model").value;
  const groups = byId("age-groups").value.replaceAll(/\s/g, "");
  if (groups && groups !== AGE_GROUPS) chosen.age_groups = groups;
  const most = Number.parseInt(byId("max-faces").value, 10);
  if (most >= 1) chosen.max_faces = most;
  if (!byId("gender").checked) chosen.gender = false;
  if (byId("crops").checked) chosen.crops = true;
  if (byId("flip").checked) chosen.flip = true;
  return chosen;
}

/** What is wrong with the age groups, in words; "" when nothing is. */
function groupsProblem() {
  const text = byId("age-groups").value.replaceAll(/\s/g, "");
  if (!/^\d{1,3}(,\d{1,3})*$/.test(text)) return "Whole numbers with commas, as 0,13,18.";
  const starts = text.split(",").map(Number);
  const rising = starts.every((start, row) => row === 0 || start > starts[row - 1]);
  return rising && starts.at(-1) <= 100 ? "" : "Rising numbers up to 100, as 0,13,18.";
}

async function loadModels() {
  let told;
  try {
    told = await ask("/v1/models");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    byId("model-words").textContent = "The list of models could not be loaded.";
    return;
  }
  state.models = told.models ?? [];
  const select = byId("model");
  select.replaceChildren(element("option", { value: "" }, "the server's own"));
  for (const model of state.models) select.append(element("option", { value: model.name }, model.name));
  showModel();
}

function showModel() {
  const chosen = state.models.find((model) => model.name === byId("model").value);
  byId("model-words").textContent = chosen?.summary ?? "";
}

let pending = 0;

function optionsChanged() {
  showModel();
  const problem = groupsProblem();
  byId("groups-problem").textContent = problem;
  byId("age-groups").setAttribute("aria-invalid", String(problem !== ""));
  clearTimeout(pending);
  if (problem) return;
  pending = setTimeout(() => {
    if (state.live) startLive();
    else if (state.picture) look();
  }, 400);
}

// --- a picture ---------------------------------------------------------------------------------------

function take(blob, name) {
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  state.picture = { blob, name, url: URL.createObjectURL(blob) };
  const picture = byId("picture");
  picture.src = state.picture.url;
  picture.alt = `Your picture, ${name}`;
  byId("shown").style.aspectRatio = "";
  showable(true);
  byId("boxes").replaceChildren();
  showStage("shown");
  look();
}

/** Say in its place that the browser cannot show the picture, or not. */
function showable(can) {
  byId("shown").classList.toggle("unshowable", !can);
  show(byId("picture"), can);
  show(byId("unshowable"), !can);
}

function takeFiles(files) {
  const [file] = files;
  if (!file) return;
  if (state.camera) closeCamera();
  take(file, file.name || "pasted picture");
  if (files.length > 1) announce(`Only the first of ${files.length} files is taken.`);
}

function showStage(part) {
  for (const id of ["welcome", "shown", "viewfinder"]) show(byId(id), id === part);
  byId("stage").classList.toggle("empty", part === "welcome");
  show(byId("remove"), part === "shown");
}

function clearResults(words) {
  byId("summary").textContent = words;
  byId("faces").replaceChildren();
  showProblem(byId("problem"), null);
  show(byId("wire"), false);
  show(byId("reading"), state.picture === null && state.camera === null);
}

function busy(on) {
  show(byId("progress"), on);
  byId("faces").setAttribute("aria-busy", String(on));
}

/** Ask the service for the faces of the picture, and show them. */
async function look() {
  const { picture } = state;
  state.asking?.abort();
  const asking = new AbortController();
  state.asking = asking;
  const chosen = options();
  const query = new URLSearchParams({ ...chosen, distribution: true });
  const type = picture.blob.type.startsWith("image/") ? picture.blob.type : "application/octet-stream";
  clearResults("Looking…");
  busy(true);
  try {
    const told = await ask(`/v1/analyze?${query}`, {
      method: "POST",
      headers: { "Content-Type": type },
      body: picture.blob,
      signal: asking.signal,
    });
    if (state.asking === asking) showAnalysis(told.analyses[0], told, command(type, picture.name, chosen));
  } catch (error) {
    if (state.asking !== asking || error.name === "AbortError") return;
    byId("summary").textContent = "";
    showProblem(byId("problem"), error, look);
  } finally {
    if (state.asking === asking) busy(false);
  }
}

function showAnalysis(analysis, told, line) {
  const { faces } = analysis;
  const words = faces.length === 0 ? "No face found in this picture." : `${counted(faces.length, "face")} in this picture.`;
  byId("summary").textContent = words;
  announce(faces.length === 0 ? words : `${words} ${faces.slice(0, 3).map((face, row) => `Face ${row + 1}: ${inWords(face)}.`).join(" ")}`);
  byId("boxes").replaceChildren(...faces.map((face, row) => box(face, row, analysis)));
  byId("faces").replaceChildren(...faces.map(card));
  drawThumbnails(faces, analysis);
  byId("command").textContent = line;
  byId("json").textContent = JSON.stringify(told, null, 2);
  show(byId("wire"));
}

/** The place of a box within a picture, in percent. */
function place(node, [x0, y0, x1, y1], width, height) {
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  const [left, top, right, bottom] = [clip(x0, width), clip(y0, height), clip(x1, width), clip(y1, height)];
  node.style.left = `${(100 * left) / width}%`;
  node.style.top = `${(100 * top) / height}%`;
  node.style.width = `${(100 * (right - left)) / width}%`;
  node.style.height = `${(100 * (bottom - top)) / height}%`;
  return node;
}

function box(face, row, { width, height }) {
  const node = element(
    "button",
    { type: "button", class: face.age.abstained ? "box unsure" : "box", "aria-label": `Face ${row + 1}: ${inWords(face)}` },
    element("span", { "aria-hidden": "true" }, String(row + 1)),
  );
  const lit = (on) => () => byId(`face-${row}`).classList.toggle("lit", on);
  for (const [event, on] of [["focus", true], ["mouseenter", true], ["blur", false], ["mouseleave", false]]) {
    node.addEventListener(event, lit(on));
  }
  node.addEventListener("click", () => byId(`face-${row}`).focus());
  return place(node, face.box, width, height);
}

function card(face, row) {
  const headline = `face-${row}-words`;
  const node = element(
    "li",
    { id: `face-${row}`, class: "face", tabindex: -1, "aria-labelledby": `${headline}-number ${headline}` },
    element(
      "div",
      { class: "portrait", "aria-hidden": "true" },
      element("canvas", { width: THUMBNAIL_PX, height: THUMBNAIL_PX }),
      element("span", { class: "badge" }, String(row + 1)),
    ),
    element("span", { class: "unseen", id: `${headline}-number` }, `Face ${row + 1}`),
    element("div", { class: "words" }, ...faceParts(face, headline)),
  );
  const lit = (on) => () => byId("boxes").children[row]?.classList.toggle("lit", on);
  for (const [event, on] of [["focusin", true], ["mouseenter", true], ["focusout", false], ["mouseleave", false]]) {
    node.addEventListener(event, lit(on));
  }
  return node;
}

async function drawThumbnails(faces, { width, height }) {
  const picture = byId("picture");
  try {
    await picture.decode();
  } catch {
    // The service reads formats that a browser does not show; the boxes then have an empty ground.
    byId("shown").style.aspectRatio = `${width} / ${height}`;
    return;
  }
  const factor = picture.naturalWidth / width;
  faces.forEach((face, row) => {
    const canvas = byId(`face-${row}`)?.querySelector("canvas");
    if (!canvas) return;
    const [x0, y0, x1, y1] = face.box.map((value) => value * factor);
    const side = 1.3 * Math.max(x1 - x0, y1 - y0);
    const context = canvas.getContext("2d");
    context.drawImage(picture, (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
  });
}

/** The same request as a line for a shell; a key stands as a variable, never as itself. */
function command(type, name, chosen) {
  const query = new URLSearchParams(chosen).toString();
  const address = `${location.origin}${ROOT}/v1/analyze${query ? `?${query}` : ""}`;
  const file = name.startsWith("-") || name.includes("/") ? `./${name}` : name;
  return [
    "curl",
    ...(key() === null ? [] : [`  -H "Authorization: Bearer $AGELENS_KEY"`]),
    `  -H 'Content-Type: ${type}'`,
    `  --data-binary ${quoted(`@${file}`)}`,
    `  ${quoted(address)}`,
  ].join(" \\\n");
}

function remove() {
  state.asking?.abort();
  state.asking = null;
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  state.picture = null;
  byId("picture").removeAttribute("src");
  byId("boxes").replaceChildren();
  byId("file").value = "";
  busy(false);
  showStage("welcome");
  clearResults("Nothing looked at yet.");
  announce("The picture is removed.");
}

// --- the camera --------------------------------------------------------------------------------------

async function openCamera() {
  showProblem(byId("problem"), null);
  try {
    state.camera = await Camera.open(byId("video"), state.facing);
  } catch (error) {
    cameraProblem(error);
    return;
  }
  const { camera } = state;
  camera.onEnd(() => {
    if (state.camera === camera) closeCamera();
  });
  state.asking?.abort();
  byId("marks").replaceChildren();
  busy(false);
  showStage("viewfinder");
  clearResults("The camera is on. Its pictures stay in the browser until you take one, or turn “Live” on.");
  show(byId("tools"), false);
  show(byId("camera-tools"));
  show(byId("turn"), await hasSeveralCameras());
  byId("take").focus();
  announce("The camera is on.");
}

function cameraProblem(error) {
  if (!(error instanceof CameraError)) throw error;
  byId("problem").replaceChildren(element("b", {}, "No camera"), element("p", {}, error.message));
  show(byId("problem"));
}

function closeCamera() {
  stopLive();
  state.camera?.close();
  state.camera = null;
  show(byId("camera-tools"), false);
  show(byId("tools"));
  if (!byId("viewfinder").hidden) showStage(state.picture ? "shown" : "welcome");
}

async function takePicture() {
  let blob;
  try {
    blob = await state.camera.picture();
  } catch (error) {
    cameraProblem(error);
    return;
  }
  closeCamera();
  byId("camera").focus();
  take(blob, "camera.jpg");
}

function startLive() {
  stopLive();
  clearResults("Waiting for the first answer…");
  state.live = new Live(state.camera, { ...options(), distribution: true }, { result: showLive, end: liveEnded });
  byId("live").setAttribute("aria-pressed", "true");
  announce("Live. Pictures of the camera go to this server.");
}

function stopLive() {
  const { live } = state;
  state.live = null;
  live?.close();
  byId("live").setAttribute("aria-pressed", "false");
  byId("marks").replaceChildren();
}

function liveEnded(problem) {
  if (state.live === null) return;
  stopLive();
  byId("summary").textContent = problem || "Live is off.";
  announce(byId("summary").textContent);
}

function showLive(told) {
  if (told.error !== null) return;
  const { width, height } = told;
  // What the latest frames of a track say together is steadier than what one of them says.
  const faces = told.faces.map((face) => ({ ...face, ...face.fused }));
  const mirrored = byId("video").classList.contains("mirrored");
  byId("summary").textContent = `Live: ${counted(faces.length, "face")}, answered in ${Math.round(told.latency_ms)} ms.`;
  byId("marks").replaceChildren(
    ...faces.map((face) => {
      const [x0, y0, x1, y1] = face.box;
      const node = element(
        "div",
        { class: face.age.abstained ? "box unsure" : "box" },
        element("span", {}, `${nameOf(face)} ${inShort(face)}`.trim()),
      );
      return place(node, mirrored ? [width - x1, y0, width - x0, y1] : face.box, width, height);
    }),
  );
  showLiveCards(faces);
}

const nameOf = (face) => (face.track_id === null ? "" : `#${face.track_id}`);

/** One card a track; the card of a track stays where it is while its face is seen. */
function showLiveCards(faces) {
  const list = byId("faces");
  const old = new Map([...list.children].map((node) => [node.dataset.track, node]));
  faces.forEach((face, row) => {
    const track = String(face.track_id ?? `row ${row}`);
    const node = old.get(track) ?? list.appendChild(element("li", { class: "face live", "data-track": track }));
    old.delete(track);
    const parts = faceParts(face, `live-${row}`).filter((part) => part.tagName !== "DETAILS");
    node.replaceChildren(
      element("div", { class: "portrait" }, element("span", { class: "badge" }, nameOf(face) || String(row + 1))),
      element("div", { class: "words" }, ...parts),
    );
  });
  for (const node of old.values()) node.remove();
}

// --- what the visitor does -----------------------------------------------------------------------------

function imagesOf(transfer) {
  return [...(transfer?.files ?? [])];
}

function listen() {
  const click = (id, listener) => byId(id).addEventListener("click", listener);
  click("choose", () => byId("file").click());
  byId("file").addEventListener("change", () => takeFiles([...byId("file").files]));
  click("camera", openCamera);
  click("remove", () => {
    remove();
    byId("choose").focus();
  });
  click("take", takePicture);
  click("live", () => {
    if (state.live === null) {
      startLive();
      return;
    }
    stopLive();
    clearResults("Live is off. The camera is on.");
  });
  click("stop", () => {
    closeCamera();
    clearResults("The camera is off.");
    announce("The camera is off.");
    byId("camera").focus();
  });
  click("turn", async () => {
    const wasLive = state.live !== null;
    stopLive();
    state.camera.close();
    state.facing = state.facing === "user" ? "environment" : "user";
    await openCamera();
    if (wasLive && state.camera) startLive();
  });
  byId("picture").addEventListener("error", () => showable(false));
  byId("options-form").addEventListener("input", optionsChanged);
  byId("options-form").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("paste", (event) => {
    const files = imagesOf(event.clipboardData);
    if (files.length === 0) return;
    event.preventDefault();
    takeFiles(files);
  });
  document.addEventListener("key", () => {
    loadModels();
    if (state.picture) look();
  });
  window.addEventListener("pagehide", () => {
    if (state.camera) closeCamera();
  });
  listenForDrops();
}

function listenForDrops() {
  const stage = byId("stage");
  let depth = 0;
  const over = (change) => {
    depth = Math.max(0, depth + change);
    stage.classList.toggle("over", depth > 0);
  };
  // On the whole window, so that a picture dropped beside the stage does not replace the page.
  window.addEventListener("dragenter", () => over(1));
  window.addEventListener("dragleave", () => over(-1));
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    takeFiles(imagesOf(event.dataTransfer));
  });
}

byId("host").textContent = location.host;
for (const [pre, what] of [["command", "the command"], ["json", "the JSON"]]) {
  byId(pre).after(copyButton(what, () => byId(pre).textContent));
}
listen();
loadModels();
