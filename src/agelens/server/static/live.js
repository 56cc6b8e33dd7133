// Faces of a camera, live: one frame is under way at a time, so that nothing queues up.

import { NOT_ACCEPTED, askForKey, key } from "./key.js";
import { ROOT } from "./service.js";

const LONGEST_PX = 960;
const LEAST_GAP_MS = 60;

/** A live look through the service's WebSocket; see docs/reference/streaming.md. */
export class Live {
  #camera;
  #options;
  #on;
  #socket = null;
  #ended = false;

  /**
   * @param {Camera} camera
   * @param {Object} options Of the hello: as the parameters of /v1/analyze.
   * @param {{result: function(Object), end: function(string)}} on Faces of a frame; the end, with
   *     what went wrong, or "".
   */
  constructor(camera, options, on) {
    this.#camera = camera;
    this.#options = options;
    this.#on = on;
    this.#connect();
  }

  /** End it; the camera stays on. */
  close() {
    this.#end("");
  }

  #connect() {
    const address = new URL(`${ROOT}/v1/stream`, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address);
    this.#socket = socket;
    socket.addEventListener("open", () => {
      const used = key();
      const hello = { type: "hello", options: this.#options, ...(used === null ? {} : { key: used }) };
      socket.send(JSON.stringify(hello));
    });
    socket.addEventListener("message", (event) => this.#take(JSON.parse(event.data)));
    socket.addEventListener("close", () => {
      if (socket === this.#socket) this.#end("The connection for live pictures ended.");
    });
  }

  #take(told) {
    if (this.#ended) return;
    if (told.type === "welcome") {
      this.#send();
    } else if (told.type === "result") {
      this.#on.result(told);
      setTimeout(() => this.#send(), LEAST_GAP_MS);
    } else if (told.type === "busy") {
      setTimeout(() => this.#send(), told.retry_after_ms);
    } else if (told.type === "error" && told.code === "unauthorized") {
      this.#askAndConnect(told.message);
    } else if (told.type === "error") {
      this.#end(told.message);
    }
  }

  async #askAndConnect(message) {
    const old = this.#socket;
    this.#socket = null;
    old.close();
    const words = key() === null ? "" : NOT_ACCEPTED;
    if ((await askForKey(words)) === null) this.#end(message);
    else if (!this.#ended) this.#connect();
  }

  #send() {
    if (this.#ended || this.#socket?.readyState !== WebSocket.OPEN) return;
    try {
      const text = atob(this.#camera.frame(LONGEST_PX));
      this.#socket.send(Uint8Array.from(text, (letter) => letter.charCodeAt(0)));
    } catch (error) {
      this.#end(error.message);
    }
  }

  #end(problem) {
    if (this.#ended) return;
    this.#ended = true;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#on.end(problem);
  }
}
