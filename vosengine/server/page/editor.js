// Editor of one held frame: its drawing is sent or discarded.

import { Draft } from "./draft.js";
import { fillPolygon, paintSegment, replaceObject } from "./labels.js";
import { encodePng } from "./png.js";

/**
 * @typedef {import("./labels.js").Point} Point
 * @typedef {{object: number, box: import("./labels.js").Box | null,
 *   points: (Point & {positive: boolean})[], previewed: boolean}} Assist
 *   a box and clicks from which the server makes the outline
 */

const NOTHING = "Nothing was found there. Try a larger box, or click on the object.";

/** Events: `changed` (draft, assist or busy), `failed` (detail: an Error for the person),
 * `preview` (detail: pixels of the outline), `sent`. */
export class Editor extends EventTarget {
  /** @type {Draft | null} */ draft = null;
  /** @type {Assist | null} */ assist = null;
  busy = false;
  /** strokes are sent as they end */ eager = false;
  #last = null;
  #sending = false;
  #asking = null;
  #painting = false;

  /**
   * @param {import("./stream.js").Stream} stream
   * @param {() => import("./api.js").Api} api
   */
  constructor(stream, api) {
    super();
    this.stream = stream;
    this.api = api;
  }

  get canUndo() {
    return Boolean((this.draft ?? this.#last)?.canUndo);
  }

  get canRedo() {
    return Boolean(this.draft?.canRedo);
  }

  /** Clears the undo history, for a new stream. */
  clear() {
    this.#stopAsking();
    this.draft = null;
    this.#last = null;
    this.#emit("changed");
  }

  /** @returns {boolean} whether there is a frame to draw on; from now on it is held */
  hold() {
    if (this.#sending) return false;
    if (this.draft) return true;
    const shown = this.stream.hold();
    if (!shown) return false;
    this.draft = new Draft(shown.frame, shown.labels);
    this.#emit("changed");
    return true;
  }

  /** A stroke of the brush begins: what was previewed is taken as it is. */
  begin() {
    this.#stopAsking();
    this.draft.beginStroke();
  }

  /** @param {Point} from @param {Point} to @param {number} radius @param {number} id 0 erases */
  segment(from, to, radius, id) {
    paintSegment(this.draft.map, from, to, radius, id);
    this.#repaint();
  }

  end() {
    this.draft.endStroke();
    this.#drawn();
  }

  /** Discards the current stroke. */
  cancel() {
    this.draft?.cancelStroke();
    this.#repaint();
  }

  /** @param {Point[]} line closed from its end to its start @param {number} id */
  fill(line, id) {
    this.begin();
    fillPolygon(this.draft.map, line, id);
    this.end();
  }

  #drawn() {
    this.#changed();
    if (!this.draft.canUndo) this.letGo();
    else if (this.eager) this.commit();
  }

  /** @param {number} object @param {import("./labels.js").Box} box */
  addBox(object, box) {
    return this.#ask(object, (assist) => {
      assist.box = box;
      assist.points = [];
    });
  }

  /** @param {number} object @param {Point} point @param {boolean} positive */
  addPoint(object, point, positive) {
    return this.#ask(object, (assist) => assist.points.push({ ...point, positive }));
  }

  async #ask(object, change) {
    if (this.assist?.object !== object) this.#stopAsking();
    this.assist ??= { object, box: null, points: [], previewed: false };
    const { assist, draft } = this;
    change(assist);
    this.#asking?.abort();
    const asking = new AbortController();
    this.#asking = asking;
    this.#setBusy(true);
    try {
      const jpeg = await this.stream.jpegOf(draft.frame);
      const answer = await this.api().prompt(jpeg, assist.box, assist.points, asking.signal);
      const mask = await readMask(answer, draft.map);
      if (this.#asking !== asking || this.draft !== draft) return;
      if (assist.previewed) draft.undo();
      draft.beginStroke();
      replaceObject(draft.map, mask, object);
      assist.previewed = draft.endStroke();
      this.#repaint();
      const pixels = mask.reduce((sum, value) => sum + value, 0);
      if (pixels) this.#emit("preview", pixels);
      else this.#emit("failed", new Error(NOTHING));
    } catch (error) {
      if (error.name !== "AbortError") this.#emit("failed", error);
    } finally {
      if (this.#asking === asking) {
        this.#asking = null;
        this.#setBusy(false);
      }
    }
  }

  #stopAsking() {
    this.#asking?.abort();
    this.#asking = null;
    this.assist = null;
    this.#setBusy(false);
  }

  /** One stroke less; after it was sent, the frame comes back with one stroke less. */
  async undo() {
    this.#stopAsking();
    if (!this.draft && this.#last?.canUndo && !this.#sending) {
      const draft = this.#last;
      this.#last = null;
      draft.frame = await this.stream.recall(draft.frame, draft.map);
      draft.base = draft.map.data.slice();
      this.draft = draft;
    }
    this.draft?.undo();
    this.#changed();
  }

  redo() {
    this.draft?.redo();
    this.#changed();
  }

  /** Drops the outline that is previewed; without one, all that was drawn on the frame. */
  drop() {
    if (!this.draft) return;
    const previewed = Boolean(this.assist?.previewed);
    if (previewed) this.draft.undo();
    this.#stopAsking();
    if (previewed && this.draft.canUndo) this.#changed();
    else this.#release();
  }

  /** Nothing came of the gesture: a frame on which nothing is drawn is held no longer. */
  letGo() {
    if (this.draft && !this.draft.canUndo && !this.assist) this.#release();
  }

  #release() {
    this.draft = null;
    this.stream.release();
    this.#emit("changed");
  }

  /** Sends the drawing with its frame. */
  async commit() {
    if (!this.draft || this.busy || this.#sending) return;
    const { draft } = this;
    const { changed, gone, mask } = draft.changes();
    const known = [...gone].filter((id) => this.stream.ids.includes(id));
    this.#stopAsking();
    if (!changed.size && !known.length) {
      this.#release();
      return;
    }
    this.draft = null;
    this.#sending = true;
    this.#emit("changed");
    const { map } = draft;
    const png = changed.size ? await encodePng({ ...map, data: mask }) : null;
    await this.stream.jpegOf(draft.frame);
    await this.stream.prompt(draft.frame, { ...map, data: map.data.slice() }, png, known);
    this.#last = draft;
    this.#sending = false;
    this.#emit("sent");
    this.#emit("changed");
  }

  #changed() {
    this.#repaint();
    this.#emit("changed");
  }

  #repaint() {
    if (this.#painting) return;
    this.#painting = true;
    requestAnimationFrame(() => {
      this.#painting = false;
      if (this.draft) this.stream.repaint(this.draft.map);
    });
  }

  #setBusy(busy) {
    if (busy === this.busy) return;
    this.busy = busy;
    this.#emit("changed");
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

async function readMask(png, { width, height }) {
  const bitmap = await createImageBitmap(png);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  return Uint8Array.from({ length: width * height }, (_, i) => (data[4 * i] > 127 ? 1 : 0));
}
