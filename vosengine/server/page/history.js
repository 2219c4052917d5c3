// Compressed masks of the stream so far (some kB per frame), for saving.

import { labelMap } from "./labels.js";
import { inflate } from "./protocol.js";
import { encodeObjects } from "./rle.js";

const MOST = 5000; // frames; older ones are removed, so that a camera may run for days

export class History {
  /** @type {Map<number, {width: number, height: number, packed: Uint8Array, time: number}>} */
  #frames = new Map();

  get length() {
    return this.#frames.size;
  }

  clear() {
    this.#frames.clear();
  }

  /**
   * @param {number} index of the frame in its source; a frame that was answered before is replaced
   * @param {number} time s
   * @param {{width: number, height: number, packed: Uint8Array}} answer
   */
  add(index, time, { width, height, packed }) {
    this.#frames.delete(index);
    // A copy: `packed` is a window on the whole message.
    this.#frames.set(index, { width, height, packed: packed.slice(), time });
    if (this.#frames.size > MOST) this.#frames.delete(this.#frames.keys().next().value);
  }

  /**
   * All masks in COCO's format: an entry of `images` a frame, one of `annotations` an object in it.
   * @param {string} name of the source
   * @returns {Promise<Blob>} application/json
   */
  async toCoco(name) {
    const [images, annotations, seen] = [[], [], new Set()];
    const frames = [...this.#frames].sort(([a], [b]) => a - b);
    for (const [index, { width, height, packed, time }] of frames) {
      const image = { id: images.length + 1, frame_index: index, time, width, height };
      images.push(image);
      const map = labelMap(width, height, await inflate(packed));
      for (const [id, { counts, area, bbox }] of encodeObjects(map)) {
        seen.add(id);
        annotations.push({
          id: annotations.length + 1,
          image_id: image.id,
          category_id: id,
          segmentation: { size: [height, width], counts },
          area,
          bbox,
          iscrowd: 0,
        });
      }
    }
    const categories = [...seen].sort((a, b) => a - b).map((id) => ({ id, name: `object ${id}` }));
    const content = { info: { description: name }, images, annotations, categories };
    return new Blob([JSON.stringify(content)], { type: "application/json" });
  }
}
