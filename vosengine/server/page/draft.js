// Drawing on one frame before it is sent, with undo.

import { countPixels, labelMap } from "./labels.js";

/**
 * @typedef {import("./labels.js").LabelMap} LabelMap
 * @typedef {import("./labels.js").Box & {before: Uint8Array, after: Uint8Array}} Patch
 */

export class Draft {
  #before = null;
  /** @type {Patch[]} */ #done = [];
  /** @type {Patch[]} */ #undone = [];

  /**
   * @param {import("./stream.js").Frame} frame the frame that is drawn on
   * @param {LabelMap} shown what was shown on it; not changed
   */
  constructor(frame, shown) {
    this.frame = frame;
    this.base = shown.data.slice();
    this.map = labelMap(shown.width, shown.height, shown.data.slice());
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** A stroke begins: what is done to `map` until `endStroke` is undone as one. */
  beginStroke() {
    this.#before = this.map.data.slice();
  }

  /** @returns {boolean} whether anything changed */
  endStroke() {
    const patch = this.#before && difference(this.map, this.#before);
    this.#before = null;
    if (!patch) return false;
    this.#done.push(patch);
    this.#undone = [];
    return true;
  }

  /** Discards the current stroke. */
  cancelStroke() {
    if (this.#before) this.map.data.set(this.#before);
    this.#before = null;
  }

  /** @returns {boolean} whether there was a stroke to undo */
  undo() {
    const patch = this.#done.pop();
    if (!patch) return false;
    write(this.map, patch, patch.before);
    this.#undone.push(patch);
    return true;
  }

  /** @returns {boolean} whether there was a stroke to draw again */
  redo() {
    const patch = this.#undone.pop();
    if (!patch) return false;
    write(this.map, patch, patch.after);
    this.#done.push(patch);
    return true;
  }

  /**
   * What the server is to be told: objects whose outline changed, and those of which nothing is
   * left. The mask shows the former alone, so that all others are followed as before.
   * @returns {{changed: Set<number>, gone: Set<number>, mask: Uint8Array}}
   */
  changes() {
    const touched = new Set();
    for (let i = 0; i < this.base.length; i++) {
      if (this.base[i] !== this.map.data[i]) touched.add(this.base[i]).add(this.map.data[i]);
    }
    touched.delete(0);
    const left = countPixels(this.map);
    const changed = new Set([...touched].filter((id) => left.has(id)));
    const gone = new Set([...touched].filter((id) => !left.has(id)));
    const mask = this.map.data.map((id) => (changed.has(id) ? id : 0));
    return { changed, gone, mask };
  }
}

/** @returns {Patch | null} the smallest rectangle that holds all that changed */
function difference(map, before) {
  const { width, height, data } = map;
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (data[i] === before[i]) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
  }
  if (right < 0) return null;
  const box = { x: left, y: top, w: right - left + 1, h: bottom - top + 1 };
  return { ...box, before: cut(before, width, box), after: cut(data, width, box) };
}

function cut(data, width, { x, y, w, h }) {
  const piece = new Uint8Array(w * h);
  for (let row = 0; row < h; row++) {
    const start = (y + row) * width + x;
    piece.set(data.subarray(start, start + w), row * w);
  }
  return piece;
}

function write(map, { x, y, w, h }, piece) {
  for (let row = 0; row < h; row++) {
    map.data.set(piece.subarray(row * w, (row + 1) * w), (y + row) * map.width + x);
  }
}
