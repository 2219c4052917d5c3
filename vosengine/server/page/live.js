// The session on the server: create, resume after a reload or restart, reset.

import { Refused, Unreachable } from "./api.js";
import { Connection } from "./connection.js";
import { remember, remembered } from "./session.js";

export class Live {
  /** @type {import("./api.js").Api | null} */ api = null;
  /** @type {Connection | null} */ connection = null;
  #resumed = null;

  /**
   * @param {import("./stream.js").Stream} stream
   * @param {(state: string) => void} report of the connection: "open", "lost", "taken", "resumed",
   *   "began anew"
   */
  constructor(stream, report) {
    this.stream = stream;
    this.report = report;
    stream.addEventListener("shown", () => this.#remember());
  }

  get takesMask() {
    return this.connection?.session.takes_mask ?? true;
  }

  /** @returns {Promise<object | null>} the session that this tab had, which goes on, if it can */
  async resume() {
    const session = remembered();
    if (!session) return null;
    try {
      await this.api.session(session.id);
    } catch (error) {
      if (error.status !== 404) throw error;
      remember(null);
      return null;
    }
    this.#resumed = session;
    this.#connect(session);
    this.report("resumed");
    return session;
  }

  /**
   * Frames come from here from now on: of the session that was resumed where it is the same source,
   * of a new one otherwise.
   * @param {import("./source.js").Source} source
   * @param {number} [size] lines that the network works at; the model's own if left out
   */
  async begin(source, size) {
    const place = this.#resumed?.source;
    this.#resumed = null;
    if (place && place.live === source.live && (place.live || place.name === source.name)) {
      if (!source.live) await source.rewind(place);
    } else {
      await this.#new({ policy: source.live ? "latest" : "all", reply: "labels", size });
    }
    await this.stream.open(source);
  }

  async #new(options) {
    const old = this.connection;
    if (old) {
      old.close();
      this.connection = null;
      this.stream.connection = null;
      await this.api.close(old.session.id).catch((error) => {
        if (error.status !== 404) throw error;
      });
    }
    this.stream.clear();
    this.#connect({ ...(await this.api.create(options)), options, source: null });
  }

  #connect(session) {
    const connection = new Connection(this.api, session);
    this.connection = connection;
    this.stream.attach(connection, session.needs_mask);
    connection.addEventListener("state", ({ detail }) => this.report(detail));
    connection.addEventListener("gone", async () => {
      this.connection = null;
      await this.#new(session.options);
      this.report("began anew");
    });
    connection.open();
    this.#remember();
  }

  /** Nothing is followed any longer; a file starts at its first frame. */
  async reset() {
    this.connection.send({ type: "reset" });
    this.stream.clear();
    await this.stream.rewind();
  }

  /** @returns {Promise<number | null>} bytes that the session's memory takes at the server */
  async memory() {
    if (!this.connection?.isOpen || document.hidden) return null;
    try {
      return (await this.api.session(this.connection.session.id)).memory_bytes;
    } catch (error) {
      if (error instanceof Unreachable || error instanceof Refused) return null;
      throw error;
    }
  }

  #remember() {
    if (!this.connection) return;
    const { source, shown } = this.stream;
    const place = source &&
      shown && {
        live: source.live,
        name: source.name,
        index: shown.frame.index,
        time: shown.frame.time,
      };
    const { session } = this.connection;
    remember({ ...session, source: place ?? session.source });
  }
}
