// WebSocket of a session; reconnects when the connection is lost.

import { Refused, Unreachable } from "./api.js";
import { packFrame, unpackAnswer } from "./protocol.js";

const WAITS_MS = [300, 700, 1500, 3000];
const TAKEN_OVER = 4409;
const NO_SESSION = [4401, 4404];

/**
 * Events: `state` (detail: "connecting", "open", "lost", "taken", "closed"), `gone` (the server
 * knows the session no longer), `hello`, `answer`, and every other message of the server under the
 * name of its type.
 */
export class Connection extends EventTarget {
  #socket = null;
  #wanted = true;
  #attempt = 0;
  #timer = 0;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./session.js").Remembered} session
   */
  constructor(api, session) {
    super();
    this.api = api;
    this.session = session;
    this.nextFrame = 0;
    this.window = session.window ?? 1;
    this.state = "connecting";
  }

  get isOpen() {
    return this.state === "open";
  }

  /** Opens the socket, and reopens it whenever it is lost. */
  open() {
    this.#wanted = true;
    this.#setState(this.#attempt ? "lost" : "connecting");
    const address = new URL(`v1/sessions/${this.session.id}/stream`, document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const token = `vosengine.token.${this.session.token}`;
    const socket = new WebSocket(address, ["vosengine.v1", token]);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code }) => socket === this.#socket && this.#closed(code);
    this.#socket = socket;
  }

  /** Closes the socket without reconnecting; the session stays on the server. */
  close() {
    this.#wanted = false;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    // Browsers report a socket that is closed while it connects as an error.
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket?.close();
    this.#setState("closed");
  }

  /** Closes the socket to open it again: its `hello` says where the stream stands. */
  reopen() {
    this.#socket?.close();
  }

  /**
   * @param {number} id
   * @param {Blob} jpeg
   * @param {Blob | null} mask
   */
  sendFrame(id, jpeg, mask) {
    this.#socket.send(packFrame(id, jpeg, mask));
  }

  /** @param {object} message a control message */
  send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #receive(data) {
    if (data instanceof ArrayBuffer) {
      this.#emit("answer", unpackAnswer(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "hello") {
      this.#attempt = 0;
      this.nextFrame = message.next_frame;
      this.window = message.window;
      this.#setState("open");
    }
    this.#emit(message.type, message);
  }

  #closed(code) {
    this.#socket = null;
    if (!this.#wanted) return;
    if (code === TAKEN_OVER) {
      this.#setState("taken");
      return;
    }
    this.#setState("lost");
    this.#retry(NO_SESSION.includes(code) ? 0 : undefined);
  }

  #retry(wait = WAITS_MS[Math.min(this.#attempt, WAITS_MS.length - 1)]) {
    this.#attempt++;
    this.#timer = setTimeout(() => this.#again(), wait);
  }

  /** Checks over HTTP first: a failed WebSocket gives no reason. */
  async #again() {
    try {
      await this.api.session(this.session.id);
    } catch (error) {
      if (!this.#wanted) return;
      if (error instanceof Unreachable || error.status === 503 || error.status === 429) {
        this.#retry();
        return;
      }
      if (!(error instanceof Refused)) throw error;
      this.close();
      this.#emit("gone");
      return;
    }
    if (this.#wanted) this.open();
  }

  #setState(state) {
    if (state === this.state && state !== "open") return;
    this.state = state;
    this.#emit("state", state);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
