// Sends frames to the server and paints them with their masks. A frame is painted with its own
// mask, or with none.

import { Encoder } from "./encode.js";
import { labelMap } from "./labels.js";
import { Pace } from "./pace.js";
import { inflate } from "./protocol.js";

const QUICK_STEP_MS = 40; // below it a second frame of the camera may wait at the server

/**
 * @typedef {import("./source.js").Grabbed & {jpeg: Blob | null, mask: Blob | null, id: number,
 *   sentAt: number, pageMs: number}} Frame
 */

/** Events: `shown` (another frame or mask on the canvas), `changed` (playing, ids, held), `ended`,
 * `failed` (detail: an Error that is for the person to read). */
export class Stream extends EventTarget {
  /** @type {import("./source.js").Source | null} */ source = null;
  /** @type {{frame: Frame, labels: import("./labels.js").LabelMap | null} | null} */ shown = null;
  playing = false;
  held = false;
  /** @type {number[]} */ ids = [];
  #steps = 0;
  #pumping = null;
  /** @type {Map<number, Frame>} sent and not answered, by id */ #waiting = new Map();
  /** @type {Set<number>} of these, the ids that count against the window */ #owing = new Set();
  /** @type {Frame[]} to be sent before the source's next */ #again = [];
  #answers = Promise.resolve();
  #pace = new Pace();
  #stepMs = 0;
  #wakers = [];
  #encoder = new Encoder();

  /**
   * @param {import("./view.js").View} view
   * @param {import("./stats.js").Stats} stats
   * @param {import("./history.js").History} history
   */
  constructor(view, stats, history) {
    super();
    Object.assign(this, { view, stats, history });
    this.connection = null;
    this.needsMask = true;
  }

  /** @returns {boolean} whether frames go to the server; before the first mask they do not */
  get following() {
    if (!this.connection) return false;
    const prompted = [...this.#waiting.values()].some((frame) => frame.mask);
    return !this.needsMask || this.ids.length > 0 || prompted;
  }

  /** @param {import("./connection.js").Connection} connection @param {boolean} needsMask */
  attach(connection, needsMask) {
    this.connection = connection;
    this.needsMask = needsMask;
    const on = (name, act) =>
      connection.addEventListener(name, ({ detail }) => {
        if (connection === this.connection) act(detail);
      });
    on("hello", (hello) => this.#hello(hello));
    on("answer", (answer) => {
      this.#answers = this.#answers.then(() => this.#answered(answer));
    });
    on("dropped", ({ frames }) => {
      this.stats.dropped += frames.length;
      frames.forEach((id) => this.#forget(id));
    });
    on("held", ({ frame }) => this.#settle(frame));
    on("removed", ({ object, ids }) => this.#removed(object, ids));
    on("error", ({ code, message, frame }) => {
      if (code === "bad_frame_id") connection.reopen();
      if (frame !== null && frame !== undefined) this.#forget(frame);
      this.#emit("failed", new Error(message));
    });
  }

  /** Discards the state of the previous stream. */
  clear() {
    for (const frame of [...this.#waiting.values(), ...this.#again]) frame.bitmap.close();
    this.#waiting.clear();
    this.#owing.clear();
    this.#again = [];
    this.#steps = 0;
    this.#pace.reset();
    this.held = false;
    this.ids = [];
    this.history.clear();
    this.stats.reset();
    if (this.shown) {
      this.shown.labels = null; // nothing of it is followed
      this.repaint();
    }
    this.#changed();
  }

  /**
   * Another source; its first frame is shown.
   * @param {import("./source.js").Source} source
   */
  async open(source) {
    this.pause();
    const old = this.source;
    this.source = source;
    this.held = false;
    old?.close();
    await this.#pumping;
    this.step();
  }

  play() {
    if (!this.source || this.playing) return;
    this.playing = true;
    this.#pace.reset();
    this.#changed();
    this.#pump();
  }

  /** @returns {boolean} whether the source has no frame left */
  get ended() {
    return this.source?.progress === 1 && !this.#again.length;
  }

  pause() {
    this.playing = false;
    this.#steps = 0;
    this.#changed();
  }

  /** The next frame, and no more. */
  step() {
    this.playing = false;
    this.#steps = 1;
    this.#changed();
    this.#pump();
  }

  /** From the first frame on. */
  async rewind() {
    this.pause();
    await this.#pumping;
    for (const frame of this.#again) frame.bitmap.close();
    this.#again = [];
    await this.source.rewind();
    this.step();
  }

  /**
   * The frame that is shown stays, for drawing on it.
   * @returns {{frame: Frame, labels: import("./labels.js").LabelMap} | null} null: none
   */
  hold() {
    if (!this.shown) return null;
    this.held = true;
    this.#changed();
    const { frame, labels } = this.shown;
    return { frame, labels: labels ?? labelMap(frame.bitmap.width, frame.bitmap.height) };
  }

  /**
   * An older frame comes back, to be drawn on once more.
   * @param {Frame} frame of which the JPEG is at hand
   * @param {import("./labels.js").LabelMap} labels
   */
  async recall(frame, labels) {
    this.held = true;
    await this.#pumping;
    this.#show({ ...frame, bitmap: await createImageBitmap(frame.jpeg) }, labels);
    this.#changed();
    return this.shown.frame;
  }

  /** Goes on where `hold` stopped, with nothing sent. */
  release() {
    this.held = false;
    for (const frame of this.#again) if (frame.answered) frame.bitmap.close();
    this.#again = this.#again.filter((frame) => !frame.answered);
    this.#pace.reset();
    this.repaint();
    this.#changed();
    this.#pump();
  }

  /**
   * The frame that was held goes to the server with a mask, as its next step; then it goes on.
   * @param {Frame} frame
   * @param {import("./labels.js").LabelMap} drawn what is shown on it from now on
   * @param {Blob | null} mask null where objects are removed only
   * @param {Iterable<number>} removed ids
   */
  async prompt(frame, drawn, mask, removed) {
    this.shown.labels = drawn;
    await this.#pumping;
    await this.#credit(() => true);
    for (const object of removed) this.connection.send({ type: "remove", object });
    if (mask) {
      const bitmap = await createImageBitmap(frame.bitmap);
      await this.#send({ ...frame, bitmap, mask, pageMs: 0, grabMs: 0 }, () => true);
    }
    this.held = false;
    this.#pace.reset();
    this.#changed();
    this.#pump();
  }

  /** Paints what is shown anew, say in another opacity. */
  repaint(labels = this.shown?.labels ?? null) {
    if (this.shown) this.view.paint(this.shown.frame.bitmap, labels);
  }

  get #wanted() {
    return Boolean(this.source) && !this.held && (this.playing || this.#steps > 0);
  }

  #pump() {
    this.#wake();
    this.#pumping ??= this.#run().finally(() => {
      this.#pumping = null;
      if (this.#wanted) this.#pump();
    });
  }

  async #run() {
    while (this.#wanted) {
      const { source } = this;
      if (this.following && !(await this.#credit(() => this.#wanted))) return;
      try {
        await this.#turn(source);
      } catch (error) {
        if (source === this.source) {
          this.pause();
          this.#emit("failed", error);
        }
        return;
      }
    }
  }

  async #turn(source) {
    const frame = this.#again.shift() ?? blank(await source.next());
    if (source !== this.source) {
      frame?.bitmap.close();
      return;
    }
    if (!frame) {
      this.pause();
      if (this.connection?.isOpen && this.#waiting.size) this.connection.send({ type: "flush" });
      this.#emit("ended");
      return;
    }
    if (!source.live && this.playing) await this.#pace.wait(frame.time);
    if (this.following) await this.jpegOf(frame);
    if (!this.#wanted || source !== this.source) {
      if (source.live || source !== this.source) frame.bitmap.close();
      else this.#again.unshift(frame);
      return;
    }
    this.#steps = Math.max(0, this.#steps - 1);
    if (this.following) await this.#send(frame, () => source === this.source);
    else this.#show(frame, null);
  }

  /** @returns {Promise<Blob>} the frame as it is, or was, sent */
  jpegOf(frame) {
    return this.#encoder.encode(frame);
  }

  async #send(frame, wanted) {
    await this.jpegOf(frame);
    if (!(await this.#credit(wanted))) {
      frame.bitmap.close();
      return;
    }
    this.#transmit(frame, this.connection.nextFrame);
    this.#changed();
  }

  /** Until the server takes one more frame; false where it is not wanted any longer. */
  async #credit(wanted) {
    while (wanted()) {
      const { connection } = this;
      const quick = !this.source?.live || this.#stepMs < QUICK_STEP_MS;
      if (connection?.isOpen && this.#owing.size < (quick ? connection.window : 1)) return true;
      await new Promise((resolve) => this.#wakers.push(resolve));
    }
    return false;
  }

  #wake() {
    for (const wake of this.#wakers.splice(0)) wake();
  }

  async #answered(answer) {
    const frame = this.#forget(answer.id, { keep: true });
    this.#follow(answer.detail.ids);
    if (!frame) return;
    const start = performance.now();
    const labels = labelMap(answer.width, answer.height, await inflate(answer.packed));
    this.history.add(frame.index, frame.time, answer);
    this.#stepMs = answer.detail.step_ms;
    if (this.held) this.#outrun(frame);
    else this.#show(frame, labels);
    const now = performance.now();
    const before = frame.grabMs + frame.pageMs;
    this.stats.answered(before + now - frame.sentAt, before + now - start);
  }

  /** Answered while an earlier one is drawn on: of a file it is sent again, once corrected. */
  #outrun(frame) {
    if (this.source?.live) frame.bitmap.close();
    else {
      this.#again.push({ ...frame, mask: null, pageMs: 0, answered: true });
      this.#again.sort((a, b) => a.index - b.index);
    }
  }

  #show(frame, labels) {
    const old = this.shown;
    this.shown = { frame, labels };
    this.view.paint(frame.bitmap, labels);
    old?.frame.bitmap.close();
    this.#emit("shown");
  }

  #settle(id) {
    this.#owing.delete(id);
    this.#wake();
  }

  #forget(id, { keep } = { keep: false }) {
    const frame = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (!keep) frame?.bitmap.close();
    this.#settle(id);
    return frame;
  }

  #removed(object, ids) {
    const labels = this.shown?.labels;
    if (labels) {
      labels.data = labels.data.map((id) => (id === object ? 0 : id));
      if (!this.held) this.repaint();
    }
    this.#follow(ids);
  }

  #follow(ids) {
    if (String(ids) === String(this.ids)) return;
    this.ids = ids;
    this.#changed();
    this.#pump();
  }

  /** The socket is open, for the first time or again: what was not answered is sent again. */
  #hello({ next_frame: next, ids }) {
    const unanswered = [...this.#waiting.values()].filter((frame) => this.#owing.has(frame.id));
    const [first, last] = [unanswered[0]?.id ?? next, unanswered.at(-1)?.id ?? next];
    const known = next >= first && next <= last + 1; // otherwise the server knows an older state
    for (const frame of unanswered) this.#forget(frame.id, { keep: true });
    this.connection.nextFrame = next;
    for (const frame of unanswered) {
      // What a camera saw before the server was away is over, but for what a person drew on it.
      if (!known && this.source?.live && !frame.mask) frame.bitmap.close();
      else this.#transmit(frame, known ? frame.id : this.connection.nextFrame);
    }
    this.#follow(ids);
    this.#changed();
    this.#pump();
  }

  #transmit(frame, id) {
    frame.id = id;
    frame.sentAt = performance.now();
    this.#waiting.set(id, frame);
    this.#owing.add(id);
    this.connection.nextFrame = Math.max(this.connection.nextFrame, id + 1);
    this.connection.sendFrame(id, frame.jpeg, frame.mask);
  }

  #changed() {
    this.#emit("changed");
    this.#wake();
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** @returns {Frame | null} */
function blank(grabbed) {
  return grabbed && { ...grabbed, jpeg: null, mask: null, id: -1, sentAt: 0, pageMs: 0 };
}
