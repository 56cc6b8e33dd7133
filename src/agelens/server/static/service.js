// Requests to the service, with the visitor's key, and its problems in words.

import { element } from "./elements.js";
import { NOT_ACCEPTED, askForKey, key } from "./key.js";

/** The prefix under which the service is reached; "" at the root. */
export const ROOT = document.documentElement.dataset.root ?? "";

/** What the service, or the way to it, did not do. */
export class Problem extends Error {
  /**
   * @param {Object} told As the service tells it (RFC 9457).
   * @param {number|null} retryAfterS Seconds until it is worth trying again.
   */
  constructor(told, retryAfterS = null) {
    super(told.detail || told.title || "unknown");
    this.status = told.status ?? 0;
    this.code = told.code ?? "unknown";
    this.title = told.title ?? "The service refused";
    this.detail = detailOf(told);
    this.requestId = told.request_id ?? null;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the same request could be answered another time. */
  get isPassing() {
    return [0, 401, 408, 429].includes(this.status) || this.status >= 500;
  }
}

function detailOf(told) {
  const errors = Array.isArray(told.errors) ? told.errors : [];
  const lines = errors.map((one) => one?.message ?? "").filter(Boolean);
  return lines.length ? lines.join(" ") : (told.detail ?? "");
}

/**
 * Ask the service; asks for a key when it wants one.
 * @param {string} path Under the root, with its query.
 * @param {RequestInit} options
 * @param {function(Response): Promise<any>} read What of the answer is wanted; its JSON by default.
 * @returns {Promise<any>} What was read.
 * @throws {Problem}
 */
export async function ask(path, options = {}, read = (response) => response.json()) {
  for (;;) {
    const used = key();
    const response = await sent(path, options, used);
    if (response.ok) return read(response);
    const problem = await problemOf(response);
    if (response.status !== 401) throw problem;
    // Another request may have asked the visitor meanwhile.
    if (key() !== null && key() !== used) continue;
    const words = used === null ? "" : NOT_ACCEPTED;
    if ((await askForKey(words)) === null) throw problem;
  }
}

async function sent(path, options, used) {
  const headers = new Headers(options.headers);
  if (used !== null) headers.set("Authorization", `Bearer ${used}`);
  try {
    return await fetch(`${ROOT}${path}`, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      code: "no_answer",
      title: "No answer from the server",
      detail: options.body
        ? "It is not running, or it closed the connection before everything was sent, as it does when that is too large."
        : "It is not running, or cannot be reached from here.",
    });
  }
}

async function problemOf(response) {
  const retry = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  let told = {};
  try {
    told = await response.json();
  } catch {
    // An answer of a proxy in between has no JSON; its status says enough.
  }
  const known = told !== null && typeof told === "object" ? told : {};
  const title = `The server answered ${response.status}`;
  return new Problem({ title, ...known, status: response.status }, Number.isFinite(retry) ? retry : null);
}

/** Show a problem in its place, or nothing; with a way to try again where there is one. */
export function showProblem(place, problem, again = null) {
  if (problem === null) {
    place.replaceChildren();
    place.hidden = true;
    return;
  }
  if (!(problem instanceof Problem)) throw problem;
  const facts = [problem.code, problem.requestId && `request ${problem.requestId}`].filter(Boolean);
  const when =
    problem.retryAfterS === null ? "" : ` Try again in ${Math.max(1, Math.ceil(problem.retryAfterS))} s.`;
  place.replaceChildren(
    element("b", {}, problem.title),
    element("p", {}, `${problem.detail}${when}`),
    element("p", { class: "quiet" }, facts.join(", ")),
    ...(again && problem.isPassing ? [element("button", { type: "button", on: { click: again } }, "Try again")] : []),
  );
  place.hidden = false;
}
