// The page on which lines and zones are drawn.

import { byId, copyButton, element, show } from "./elements.js";
import { Board } from "./setup-board.js";
import { complaint, cornersComplaint, planText } from "./setup-plan.js";
import { Problem, ask, showProblem } from "./service.js";

const board = new Board(byId("board"), changed);
let shown = null;

// --- the picture ------------------------------------------------------------------------------------------

async function loadCameras() {
  let told;
  try {
    told = await ask("/v1/visitors");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(byId("problem"), error, loadCameras);
    return;
  }
  showProblem(byId("problem"), null);
  const names = told.pictures;
  show(byId("cameras"), names.length > 0);
  show(byId("take"), names.length > 0);
  byId("camera").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  const wanted = new URLSearchParams(location.search).get("camera");
  if (names.includes(wanted)) byId("camera").value = wanted;
  if (names.length) await takePicture();
}

async function takePicture() {
  const query = new URLSearchParams({ camera: byId("camera").value });
  byId("take").disabled = true;
  try {
    showPicture(await ask(`/v1/visitors/picture?${query}`, {}, (response) => response.blob()), `Camera ${byId("camera").value}`);
    showProblem(byId("problem"), null);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    // What was drawn over the picture of one camera must not lie over that of another unseen.
    show(byId("picture"), false);
    show(byId("blank"));
    showProblem(byId("problem"), error, takePicture);
  } finally {
    byId("take").disabled = false;
  }
}

function showPicture(blob, words) {
  if (shown !== null) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(blob);
  byId("picture").src = shown;
  byId("picture").alt = words;
  show(byId("picture"));
  show(byId("blank"), false);
}

byId("picture").addEventListener("load", () => board.draw());
byId("picture").addEventListener("error", () => {
  show(byId("picture"), false);
  show(byId("blank"));
  byId("blank").textContent = "The browser cannot show this picture; coordinates are shares of it, so that you can draw here too.";
});

// --- the shapes ---------------------------------------------------------------------------------------------

function changed() {
  const { drawing } = board;
  byId("add-line").setAttribute("aria-pressed", String(drawing === "line"));
  byId("add-zone").setAttribute("aria-pressed", String(drawing === "zone"));
  show(byId("finish"), board.canFinish);
  show(byId("cancel"), drawing !== null);
  byId("hint").textContent = board.hint;
  show(byId("none"), board.shapes.length === 0);
  showList();
  showPlan();
}

/** One entry for each shape; entries that are there stay, so that nothing is lost while one is typed in. */
function showList() {
  const list = byId("shapes");
  const entries = new Map([...list.children].map((entry) => [entry.shape, entry]));
  for (const entry of entries.values()) if (!board.shapes.includes(entry.shape)) entry.remove();
  for (const shape of board.shapes) if (!entries.has(shape)) list.append(shapeEntry(shape));
  for (const entry of list.children) entry.check();
}

let counter = 0;

function shapeEntry(shape) {
  counter += 1;
  const [input, words] = [`shape-${counter}`, `shape-${counter}-words`];
  const name = element("input", { id: input, value: shape.name, autocomplete: "off", spellcheck: "false", maxlength: 200, "aria-describedby": words });
  const problem = element("p", { id: words, class: "problem-line", role: "alert" });
  name.addEventListener("input", () => {
    shape.name = name.value.trim();
    board.draw();
    for (const one of byId("shapes").children) one.check();
    showPlan();
  });
  const remove = element("button", { type: "button", "aria-label": `Remove ${shape.name}` }, "Remove");
  remove.addEventListener("click", () => {
    board.remove(shape);
    byId("shapes-title").focus();
  });
  const entry = element(
    "li",
    { class: shape.kind },
    element("label", { for: input }, shape.kind === "line" ? "Line" : "Zone"),
    name,
    problem,
    element("div", { class: "shape-tools" }, shape.kind === "line" ? turnButton(shape) : staffTick(shape), remove),
  );
  entry.shape = shape;
  entry.check = () => {
    const others = board.shapes.filter((one) => one !== shape && one.kind === shape.kind).map((one) => one.name);
    const unfit = complaint(shape.name, others);
    const wrong = unfit || (shape.kind === "zone" ? cornersComplaint(shape.points) : "");
    if (problem.textContent !== wrong) problem.textContent = wrong;
    name.setAttribute("aria-invalid", String(unfit !== ""));
    shape.wrong = wrong !== "";
  };
  entry.check();
  for (const [event, chosen] of [["pointerenter", shape], ["pointerleave", null], ["focusin", shape], ["focusout", null]]) {
    entry.addEventListener(event, () => board.choose(chosen));
  }
  return entry;
}

function turnButton(shape) {
  const button = element("button", { type: "button" }, "Swap in and out");
  button.addEventListener("click", () => {
    shape.inSide = shape.inSide === "left" ? "right" : "left";
    board.draw();
    showPlan();
  });
  return button;
}

function staffTick(shape) {
  const box = element("input", { type: "checkbox" });
  box.addEventListener("change", () => {
    shape.staff = box.checked;
    showPlan();
  });
  return element("label", { class: "tick" }, box, element("span", {}, "Only staff is here"));
}

function showPlan() {
  const wrong = board.shapes.filter((shape) => shape.wrong);
  byId("toml").textContent = wrong.length
    ? "# mend what is said of the lines and zones first\n"
    : planText(board.shapes) || "# draw a line or a zone first\n";
}

// --- what is done -------------------------------------------------------------------------------------------

for (const kind of ["line", "zone"]) {
  byId(`add-${kind}`).addEventListener("click", () => (board.drawing === kind ? board.cancel() : board.begin(kind)));
}
byId("finish").addEventListener("click", () => board.finish());
byId("cancel").addEventListener("click", () => board.cancel());
byId("take").addEventListener("click", takePicture);
byId("camera").addEventListener("change", takePicture);
byId("choose").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", () => {
  const [file] = byId("file").files;
  if (file) showPicture(file, file.name);
});
byId("toml").after(copyButton("the tables", () => byId("toml").textContent));
document.addEventListener("key", loadCameras);
changed();
loadCameras();
