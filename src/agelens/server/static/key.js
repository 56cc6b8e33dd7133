// The visitor's key: asked for when the server wants one, kept in this tab only.

import { announce, byId, show } from "./elements.js";

/** What to say of a key that the server refused. */
export const NOT_ACCEPTED = "This key is not accepted; it may be mistyped, or revoked.";

const NAME = "agelens.key";

// A browser may refuse storage; the key then lasts as long as the page.
let held = stored();
let waiting = null;
let wanted = false;

function stored() {
  try {
    return sessionStorage.getItem(NAME);
  } catch {
    return null;
  }
}

/** The key, or null. */
export function key() {
  return held;
}

/** Use a key that came with the address of the page. */
export function useKey(value) {
  if (/^[\x21-\x7e]+$/.test(value)) keep(value);
}

function keep(value) {
  held = value;
  try {
    if (value === null) sessionStorage.removeItem(NAME);
    else sessionStorage.setItem(NAME, value);
  } catch {
    // see `held`
  }
  showButtons();
}

function showButtons() {
  show(byId("key-forget"), held !== null);
  show(byId("key-enter"), held === null && wanted);
}

/**
 * Ask for a key; several askers share one question.
 * @param {string} problem What was wrong with the last one; "" when there was none.
 * @returns {Promise<string|null>} null when the visitor cancels.
 */
export function askForKey(problem = "") {
  wanted = true;
  keep(null);
  waiting ??= question(problem).finally(() => {
    waiting = null;
  });
  return waiting;
}

function question(problem) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  byId("key-problem").textContent = problem;
  input.value = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    const over = new AbortController();
    const { signal } = over;
    const end = (value) => {
      over.abort();
      dialog.close();
      input.value = "";
      if (value) keep(value);
      showButtons();
      resolve(value || null);
    };
    byId("key-form").addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        const value = input.value.trim();
        // A header takes printable ASCII only.
        if (/^[\x21-\x7e]+$/.test(value)) end(value);
        else byId("key-problem").textContent = "A key has letters, digits, - and _ only.";
      },
      { signal },
    );
    byId("key-cancel").addEventListener("click", () => end(null), { signal });
    dialog.addEventListener("cancel", () => end(null), { signal });
  });
}

byId("key-forget").addEventListener("click", () => {
  wanted = true;
  keep(null);
  announce("The key is forgotten.");
  byId("key-enter").focus();
});
byId("key-enter").addEventListener("click", async () => {
  if (await askForKey()) document.dispatchEvent(new Event("key"));
});
showButtons();
