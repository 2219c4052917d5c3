// Encoding of frames for sending.

const JPEG = { type: "image/jpeg", quality: 0.92 };

export class Encoder {
  #canvas = new OffscreenCanvas(1, 1);

  /**
   * @param {import("./stream.js").Frame} frame gets its `jpeg`, unless it has one; the time that
   *   this takes is added to its `pageMs`
   * @returns {Promise<Blob>} the JPEG
   */
  async encode(frame) {
    if (frame.jpeg) return frame.jpeg;
    const start = performance.now();
    const canvas = this.#canvas;
    const { width, height } = frame.bitmap;
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    canvas.getContext("2d", { alpha: false }).drawImage(frame.bitmap, 0, 0);
    frame.jpeg = await canvas.convertToBlob(JPEG);
    frame.pageMs += performance.now() - start;
    return frame.jpeg;
  }
}
