// Downloads: files, and a recording of the canvas.

const FORMATS = ["video/mp4;codecs=avc1.42E01F", "video/webm;codecs=vp9", "video/webm;codecs=vp8"];

/**
 * @param {Blob} blob
 * @param {string} name of the file
 */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Records what a canvas shows, as long as it is shown. */
export class Recorder {
  #recorder = null;
  #parts = [];

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
  }

  get active() {
    return this.#recorder !== null;
  }

  start() {
    const mimeType = FORMATS.find((format) => MediaRecorder.isTypeSupported(format));
    this.#parts = [];
    this.#recorder = new MediaRecorder(this.canvas.captureStream(), {
      mimeType,
      videoBitsPerSecond: 6e6,
    });
    this.#recorder.ondataavailable = ({ data }) => this.#parts.push(data);
    this.#recorder.start(1000);
  }

  /** @returns {Promise<{blob: Blob, extension: string}>} */
  async stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
    const stopped = new Promise((resolve) => (recorder.onstop = resolve));
    recorder.stop();
    await stopped;
    for (const track of recorder.stream.getTracks()) track.stop();
    const type = recorder.mimeType;
    return {
      blob: new Blob(this.#parts, { type }),
      extension: type.includes("mp4") ? "mp4" : "webm",
    };
  }
}
