// Server-sent events, asked for with the visitor's key, which EventSource could not send.

import { ask } from "./service.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;

/**
 * Events of a path, for as long as they are wanted; a broken connection is made again.
 * @param {string} path
 * @param {Object} options
 * @param {AbortSignal} options.signal Ends it.
 * @param {number} options.silenceMs Longest pause, of signs of life too, before the connection counts as broken.
 * @param {function(boolean)} options.onState Called with true when connected, with false when not.
 * @returns {AsyncGenerator<{event: string, data: string}>}
 * @throws {Problem} The service refuses for good.
 */
export async function* events(path, { signal, silenceMs = 30_000, onState = () => {} }) {
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    const silence = new Silence(silenceMs);
    const either = AbortSignal.any([signal, silence.signal]);
    try {
      const body = await ask(path, { signal: either, headers: { Accept: "text/event-stream" } }, (response) => response.body);
      onState(true);
      for await (const message of messages(body, () => silence.restart())) {
        wait = FIRST_WAIT_MS;
        yield message;
      }
    } catch (error) {
      if (signal.aborted) return;
      // Who was asked for a key and gave none is not asked again and again.
      if (error.status === 401 || error.isPassing === false) throw error;
    } finally {
      silence.end();
    }
    onState(false);
    await pause(wait, signal);
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  }
}

/** Aborts its signal when it was not started again for too long: a dead network closes nothing. */
class Silence {
  #over = new AbortController();
  #timer = null;
  #ms;

  constructor(ms) {
    this.#ms = ms;
    this.restart();
  }

  get signal() {
    return this.#over.signal;
  }

  restart() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#over.abort(), this.#ms);
  }

  end() {
    clearTimeout(this.#timer);
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

async function* messages(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      held += value;
      const blocks = held.split(/\r?\n\r?\n/);
      held = blocks.pop();
      for (const block of blocks) {
        const message = parsed(block);
        if (message !== null) yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One event of its lines (HTML standard, 9.2.6); comments keep a connection open and say nothing. */
function parsed(block) {
  const data = [];
  let event = "message";
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "event") event = value;
    if (name === "data") data.push(value);
  }
  return data.length ? { event, data: data.join("\n") } : null;
}
