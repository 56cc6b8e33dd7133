// The page of an age check: choose a policy, follow the moves, hear the outcome.

import { Camera, CameraError } from "./camera.js";
import { announce, byId, copyButton, drawing, element, show } from "./elements.js";
import { Problem, ask, showProblem } from "./service.js";

const FRAME_PX = 640;
const FRAMES_PER_S = 6;
const START_S = 1.5;
const MOVE_S = 2.6;
const BACK_S = 2.2;
const LOOK_S = 3;
const FOR_THE_ANSWER_S = 8; // of a challenge's time, for sending
const MOST_FRAMES = 290; // the service follows a challenge over 300 at most

const MOVES = {
  left: { word: "Left", go: "Turn your head slowly to your left", back: "And back to the middle" },
  right: { word: "Right", go: "Turn your head slowly to your right", back: "And back to the middle" },
  closer: { word: "Closer", go: "Come closer to the camera", back: "And go back" },
};

const OUTCOMES = {
  accept: { verdict: "You can go on", meaning: (who) => `The gate is sure enough that you are ${who}.` },
  refuse: {
    verdict: "Not this time",
    meaning: (who) => `To the gate you look clearly not ${who}. If that is wrong, ask for another proof of age.`,
  },
  step_up: {
    verdict: "Please show another proof of age",
    meaning: (who) => `The gate is not sure enough that you are ${who}. A document, a card or a person decides.`,
  },
  retry: { verdict: "Let us try that again", meaning: () => "The camera did not see what it needs. Nothing was decided." },
};

const SIGNS = {
  accept: "M26 52 44 70 76 34",
  refuse: "M30 30 70 70M70 30 30 70",
  step_up: "M50 26v30M50 72v2",
  retry: "M74 40a27 27 0 1 0 2 18M76 24v18H58",
};

/** What a reason of the gate asks of a visitor; others are shown as the gate words them. */
const ADVICE = {
  no_face: "Stay in the oval, with light on your face.",
  second_face: "Only one person may be in the picture.",
  unusable: "More light, a steadier head, or less distance helps.",
  too_few_frames: "Stay in the oval until the end.",
  still_picture: "A photograph does not move as a living face does; move your head a little.",
  unclear: "The face was not clear while it turned; more light, and slower.",
  person_changed: "Stay before the camera during the whole check.",
  not_facing: "Begin by facing the camera.",
  wrong_moves: "Turn as far as the arrow shows, one move at a time, and come back each time.",
  jump: "Move slowly.",
  gap: "The camera or this computer was too slow; close other programs.",
  challenge_expired: "The moves have to be made, and sent, in time.",
  unknown_challenge: "Each set of moves counts once.",
};

const state = { policies: [], policy: null, camera: null, running: null };

// --- choosing -------------------------------------------------------------------------------------------

async function loadPolicies() {
  showProblem(byId("setup-problem"), null);
  show(byId("none"), false);
  show(byId("loading"));
  let told;
  try {
    told = await ask("/v1/policies");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(byId("setup-problem"), error, loadPolicies);
    return;
  } finally {
    show(byId("loading"), false);
  }
  state.policies = told.policies;
  const legend = byId("policies").querySelector("legend");
  byId("policies").replaceChildren(legend, ...state.policies.map(policyChoice));
  show(byId("policies-form"), state.policies.length > 0);
  show(byId("none"), state.policies.length === 0);
  const first = byId("policies").querySelector("input:not(:disabled)");
  if (first) first.checked = true;
  byId("start").disabled = first === null;
}

/** Who is let in, in words. */
function admitted({ required_age: age, admit }) {
  return admit === "under" ? `under ${age}` : `${age} or over`;
}

const LIVENESS = {
  none: "no check against photographs",
  consistency: "a short look, checked against photographs",
  challenge: "a few moves of the head",
};

function policyChoice(policy, row) {
  const shut = policy.open ? null : (policy.reason ?? "the server does not say why");
  const words = `policy-${row}-words`;
  return element(
    "label",
    { class: shut ? "policy shut" : "policy" },
    element("input", { type: "radio", name: "policy", value: policy.name, disabled: shut !== null, "aria-describedby": words }),
    element(
      "span",
      {},
      element("b", {}, policy.name),
      policy.required_age === null ? null : element("span", { class: "age" }, admitted(policy)),
      element(
        "span",
        { id: words, class: "policy-words" },
        policy.summary || "",
        policy.liveness === null ? null : element("small", {}, LIVENESS[policy.liveness]),
        policy.audit?.status === "overridden"
          ? element("small", { class: "warned" }, "Open without a passed audit, on the operator's written word.")
          : null,
        shut ? element("small", { class: "warned" }, `Stays shut: ${shut.replace(/^the gate '.*?' stays shut: /, "")}`) : null,
      ),
    ),
  );
}

// --- the check --------------------------------------------------------------------------------------------

class Cancelled extends Error {}

/** Waits that end at once, with `Cancelled`, when the visitor cancels. */
class Run {
  #over = new AbortController();

  cancel() {
    this.#over.abort();
  }

  get signal() {
    return this.#over.signal;
  }

  check() {
    if (this.signal.aborted) throw new Cancelled();
  }

  async wait(seconds) {
    this.check();
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000 * seconds);
      this.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      }, { once: true });
    });
    this.check();
  }

  async pressed(button) {
    this.check();
    await new Promise((resolve) => {
      button.addEventListener("click", resolve, { once: true, signal: this.signal });
      this.signal.addEventListener("abort", resolve, { once: true });
    });
    this.check();
  }
}

async function start(name) {
  state.policy = state.policies.find((policy) => policy.name === name);
  const run = new Run();
  state.running = run;
  try {
    await openCamera(run);
    await run.pressed(byId("ready"));
    show(byId("ready"), false);
    byId("instruction").focus();
    const answer = await follow(run);
    closeCamera();
    instruct("Thank you", "One moment: the gate decides.");
    const decision = await ask("/v1/gate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(answer),
      signal: run.signal,
    });
    showDecision(decision);
  } catch (error) {
    backToSetup(error);
  } finally {
    closeCamera();
  }
}

async function openCamera(run) {
  showPart("check");
  ring(0);
  arrow(null);
  byId("moves").replaceChildren();
  instruct("", "Allow the camera, please");
  byId("instruction").focus();
  const camera = await Camera.open(byId("video"));
  state.camera = camera;
  camera.onEnd(() => run.cancel());
  run.check();
  instruct("Get ready", "Bring your face into the oval");
  show(byId("ready"));
  byId("ready").focus();
}

function closeCamera() {
  state.camera?.close();
  state.camera = null;
  byId("video").srcObject = null;
}

/** Go through the instructions, and gather the frames: the body of a request for a decision. */
async function follow(run) {
  const { policy } = state;
  const body = { policy: policy.name };
  let plan;
  let every = 1 / FRAMES_PER_S;
  if (policy.liveness === "challenge") {
    const challenge = await askForMoves(policy.name);
    body.challenge = challenge.challenge;
    plan = planOf(challenge);
  } else {
    every = Math.max(every, LOOK_S / policy.max_frames);
    const go = policy.liveness === "none" ? "Look into the camera" : "Look into the camera, and blink";
    plan = [{ step: "Look", words: go, seconds: LOOK_S }];
  }
  if (policy.tokens) body.nonce = occasion();
  run.check();
  const gathering = gather(run, every, policy.liveness === "challenge" ? MOST_FRAMES : policy.max_frames);
  try {
    await lead(run, plan);
  } finally {
    gathering.stop();
  }
  body.frames = await gathering.frames;
  return body;
}

/** What a shop would send to have a token for this one occasion. */
function occasion() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function askForMoves(policy) {
  return ask("/v1/gate/challenge", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ policy }),
  });
}

/** The instructions of a challenge, one after another, within the time that it leaves. */
function planOf(challenge) {
  const left = (Date.parse(challenge.expires) - Date.now()) / 1000 - FOR_THE_ANSWER_S - START_S;
  const wanted = challenge.moves.length * (MOVE_S + BACK_S);
  // A computer whose clock is wrong would leave no time at all.
  const pace = left > wanted / 2 ? Math.min(1, left / wanted) : 1;
  const count = challenge.moves.length;
  return [
    { step: "Start", words: "Look into the camera", seconds: START_S },
    ...challenge.moves.flatMap((move, row) => [
      { step: `Move ${row + 1} of ${count}`, words: MOVES[move].go, seconds: MOVE_S * pace, move, row },
      { step: `Move ${row + 1} of ${count}`, words: MOVES[move].back, seconds: BACK_S * pace, row, back: true },
    ]),
  ];
}

async function lead(run, plan) {
  const moves = plan.filter((one) => one.move);
  byId("moves").replaceChildren(...moves.map((one) => element("li", {}, MOVES[one.move].word)));
  const all = plan.reduce((sum, one) => sum + one.seconds, 0);
  let passed = 0;
  for (const one of plan) {
    instruct(one.step, one.words);
    arrow(one.move ?? (one.back ? "back" : null));
    for (const [row, item] of [...byId("moves").children].entries()) {
      item.classList.toggle("done", one.row !== undefined && row < one.row);
      if (row === one.row) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    }
    ring((passed + one.seconds) / all, one.seconds);
    await run.wait(one.seconds);
    passed += one.seconds;
  }
  arrow(null);
}

/** Take frames until it is stopped, evenly, each with its time. */
function gather(run, every, most = Infinity) {
  const begun = performance.now();
  let going = true;
  const frames = (async () => {
    const kept = [];
    while (going && !run.signal.aborted && kept.length < most) {
      const seconds = (performance.now() - begun) / 1000;
      kept.push({ base64: state.camera.frame(FRAME_PX), seconds: Math.round(1000 * seconds) / 1000 });
      const next = seconds + every - (performance.now() - begun) / 1000;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, 1000 * next)));
    }
    return kept;
  })();
  // It is waited for only once the instructions are through; an error must not be lost till then.
  frames.catch(() => {});
  return { frames, stop: () => { going = false; } };
}

// --- what is shown ------------------------------------------------------------------------------------------

function showPart(id) {
  for (const part of ["setup", "check", "outcome"]) show(byId(part), part === id);
  show(byId("none"), id === "setup" && state.policies.length === 0);
  document.body.classList.toggle("running", id !== "setup");
  window.scrollTo(0, 0);
}

function instruct(step, words) {
  byId("step").textContent = step;
  byId("instruction").textContent = words;
}

function arrow(direction) {
  byId("arrow").dataset.to = direction ?? "";
  show(byId("arrow"), direction !== null);
}

function ring(share, seconds = 0) {
  const line = byId("ring");
  line.style.transitionDuration = `${seconds}s`;
  line.style.strokeDashoffset = String(100 - 100 * share);
}

function backToSetup(error) {
  const cancelled = error instanceof Cancelled || error.name === "AbortError";
  const known = cancelled || error instanceof Problem || error instanceof CameraError;
  closeCamera();
  showPart("setup");
  show(byId("ready"), false);
  if (cancelled) announce("The check is cancelled; the camera is off.");
  else if (error instanceof Problem) showProblem(byId("setup-problem"), error);
  else {
    byId("setup-problem").replaceChildren(
      element("b", {}, error instanceof CameraError ? "No camera" : "The check was interrupted"),
      element("p", {}, error.message),
    );
    show(byId("setup-problem"));
  }
  byId("setup-title").focus();
  if (!known) throw error;
}

function showDecision(decision) {
  const { verdict, meaning } = OUTCOMES[decision.outcome];
  showPart("outcome");
  byId("outcome").dataset.outcome = decision.outcome;
  byId("sign").replaceChildren(sign(decision.outcome));
  byId("verdict").textContent = verdict;
  byId("meaning").textContent = meaning(admitted(decision));
  byId("reasons").replaceChildren(...decision.reasons.map(reasonItem));
  showToken(decision);
  byId("record-title").textContent = state.policy.journal
    ? "The decision, as the gate's journal keeps it"
    : "The decision, of which nothing is kept";
  byId("record").replaceChildren(...recordRows(decision));
  byId("again").textContent = decision.outcome === "retry" ? "Try again" : "Once more";
  byId("verdict").focus();
}

function sign(outcome) {
  return drawing("svg", { viewBox: "0 0 100 100" }, drawing("path", { d: SIGNS[outcome] }));
}

function reasonItem(reason) {
  const text = `${reason.text.charAt(0).toUpperCase()}${reason.text.slice(1)}.`;
  return element("li", {}, text.replace("..", "."), " ", element("span", { class: "advice" }, ADVICE[reason.code] ?? ""));
}

function showToken({ token, ...decision }) {
  show(byId("token"), token !== null);
  if (token === null) return;
  const until = new Date(token.expires).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  byId("token").replaceChildren(
    element("b", {}, "A token was issued"),
    `It says “${admitted(decision)}” and nothing else, counts once, and ends at ${until}. A shop would take it now; this page lets it go.`,
  );
}

function recordRows(decision) {
  const rows = [
    ["Outcome", decision.outcome.replace("_", " ")],
    ["Lets in", admitted(decision)],
    ["Probability reached", decision.confidence === null ? "none" : `${Math.round(100 * decision.confidence)} % or more`],
    ["Frames", `${decision.frames} given, ${decision.used} used for the age`],
    ["Checks", decision.liveness.join(", ") || "none"],
    ["Audit", decision.audit.status],
    ["Policy", decision.policy.name],
    ["Model", decision.model.name],
    ["Number", decision.id],
  ];
  return rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
}

// --- what the visitor does ------------------------------------------------------------------------------------

byId("policies-form").addEventListener("submit", (event) => {
  event.preventDefault();
  showProblem(byId("setup-problem"), null);
  start(new FormData(event.target).get("policy"));
});
byId("cancel").addEventListener("click", () => state.running?.cancel());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("check").hidden) state.running?.cancel();
});
byId("again").addEventListener("click", () => start(state.policy.name));
byId("other").addEventListener("click", () => {
  showPart("setup");
  byId("setup-title").focus();
});
document.addEventListener("key", loadPolicies);
window.addEventListener("pagehide", () => {
  state.running?.cancel();
  closeCamera();
});
for (const [id, what] of [["fit-command", "the command that fits"], ["audit-command", "the commands that audit"], ["serve-command", "the command that serves"]]) {
  byId(id).after(copyButton(what, () => byId(id).textContent));
}
loadPolicies();
