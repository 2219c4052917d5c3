// Frame sources: camera, video, image.

import { openMp4 } from "./mp4.js";

const LONGEST = 1280; // pixels; larger frames are made smaller before they are sent
const SLOWEST = 0.0625; // rate at which browsers play
const WAIT_MS = 60; // a video that is not asked for its next frame this long is paused
const NO_CAMERA = {
  NotFoundError: "No camera was found. Open a video instead.",
  NotAllowedError:
    "The camera is blocked for this page. Allow it beside the address, and try again.",
};

/**
 * @typedef {{bitmap: ImageBitmap, index: number, time: number, grabMs: number}} Grabbed
 *   `index` counts the source's frames, `time` is in seconds
 *
 * @typedef {object} Source
 * @property {string} name
 * @property {boolean} live frames pass by whether they are asked for or not
 * @property {number | null} progress 0 to 1; null where there is no end
 * @property {() => Promise<Grabbed | null>} next null at the end
 * @property {(to?: {index: number, time: number}) => Promise<void>} rewind
 *   so that `next` gives that frame; the first if left out
 * @property {() => void} close
 */

/**
 * @returns {Promise<Source>}
 * @throws {Error} that says what to do, where there is no camera or no leave to use it
 */
export async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Error(
      "Browsers give the camera to secure pages only: open this one at 127.0.0.1, or by https.",
    );
  }
  const video = quietVideo();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: {
        width: { ideal: 854 },
        height: { ideal: 480 },
        facingMode: { ideal: "environment" },
      },
    });
  } catch (error) {
    throw new Error(NO_CAMERA[error.name] ?? `The camera cannot be used: ${error.message}`);
  }
  await video.play();
  return new CameraSource(video);
}

/**
 * @param {File} file a video or an image
 * @returns {Promise<Source>}
 * @throws {Error} where the browser can make nothing of it
 */
export async function openFile(file) {
  if (file.type.startsWith("image/")) {
    try {
      const whole = await createImageBitmap(file);
      const bitmap = await bitmapOf(whole);
      whole.close();
      return new ImageSource(file.name, bitmap);
    } catch {
      throw new Error(`${file.name} is no image that this browser can read.`);
    }
  }
  const samples = "VideoDecoder" in window ? await openMp4(file) : null;
  if (samples && (await VideoDecoder.isConfigSupported(samples.config)).supported) {
    return new DecodedSource(file.name, samples);
  }
  const video = quietVideo();
  video.src = URL.createObjectURL(file);
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Error(`${file.name} is no video that this browser can play.`));
  });
  return new VideoSource(file.name, video);
}

function quietVideo() {
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  return video;
}

/** A bitmap of a picture, of at most LONGEST pixels a side. */
function bitmapOf(image) {
  const width = image.videoWidth ?? image.displayWidth ?? image.width;
  const height = image.videoHeight ?? image.displayHeight ?? image.height;
  const scale = LONGEST / Math.max(width, height);
  if (scale >= 1) return createImageBitmap(image);
  return createImageBitmap(image, {
    resizeWidth: Math.round(width * scale),
    resizeHeight: Math.round(height * scale),
    resizeQuality: "medium",
  });
}

async function grab(image, index, time) {
  const start = performance.now();
  const bitmap = await bitmapOf(image);
  return { bitmap, index, time, grabMs: performance.now() - start };
}

/** The next frame that a playing video shows; null where it ends or is closed. */
function nextShown(video) {
  return new Promise((resolve) => {
    const over = new AbortController();
    const once = { once: true, signal: over.signal };
    for (const end of ["ended", "emptied"]) video.addEventListener(end, () => resolve(null), once);
    video.requestVideoFrameCallback((_, shown) => {
      over.abort();
      resolve(shown);
    });
  });
}

/** @implements {Source} */
class CameraSource {
  name = "camera";
  live = true;
  progress = null;
  #index = 0;
  #start = performance.now();

  constructor(video) {
    this.video = video;
  }

  async next() {
    if (!(await nextShown(this.video))) return null;
    return grab(this.video, this.#index++, (performance.now() - this.#start) / 1000);
  }

  async rewind() {}

  close() {
    for (const track of this.video.srcObject.getTracks()) track.stop();
    this.video.srcObject = null;
  }
}

/**
 * What the browser plays but does not decode frame by frame. It plays as slowly as its frames are
 * asked for, and waits while nobody asks; some frames may be skipped.
 * @implements {Source}
 */
class VideoSource {
  live = false;
  #index = 0;
  #last = -1;
  #period = Infinity; // seconds from frame to frame
  #timer = 0;

  constructor(name, video) {
    this.name = name;
    this.video = video;
    video.playbackRate = 0.25;
  }

  get progress() {
    return this.video.currentTime / this.video.duration;
  }

  async next() {
    const { video } = this;
    clearTimeout(this.#timer);
    for (;;) {
      if (video.ended) return null;
      const shown = nextShown(video);
      if (video.paused) await video.play();
      const frame = await shown;
      if (!frame) return null;
      if (frame.mediaTime === this.#last) continue; // shown once more as it was paused
      this.#adapt(frame.mediaTime - this.#last);
      this.#last = frame.mediaTime;
      this.#timer = setTimeout(() => video.pause(), WAIT_MS);
      return grab(video, this.#index++, frame.mediaTime);
    }
  }

  /** Slower where frames were skipped, otherwise a little quicker. */
  #adapt(passed) {
    if (this.#last < 0) return;
    this.#period = Math.min(this.#period, passed);
    const factor = passed > 1.5 * this.#period ? 0.7 : 1.05;
    this.video.playbackRate = Math.min(1, Math.max(SLOWEST, this.video.playbackRate * factor));
  }

  async rewind({ index, time } = { index: 0, time: 0 }) {
    clearTimeout(this.#timer);
    this.video.pause();
    this.#index = index;
    this.#last = -1;
    this.video.currentTime = time;
  }

  close() {
    clearTimeout(this.#timer);
    this.video.pause();
    URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
    this.video.load();
  }
}

/**
 * An MP4, every frame of it, by WebCodecs.
 * @implements {Source}
 */
class DecodedSource {
  live = false;
  #decoder = null;
  #ready = [];
  #fed = 0;
  #index = 0;
  #flushed = false;
  #error = null;
  #wake = () => {};

  /** @param {import("./mp4.js").Samples} samples */
  constructor(name, samples) {
    this.name = name;
    this.samples = samples;
    this.#start();
  }

  get progress() {
    return this.#index / this.samples.list.length;
  }

  #start() {
    const decoder = new VideoDecoder({
      output: (frame) => {
        if (decoder === this.#decoder) this.#ready.push(frame);
        else frame.close();
        this.#wake();
      },
      error: (error) => {
        this.#error = new Error(`${this.name} cannot be decoded: ${error.message}`);
        this.#wake();
      },
    });
    decoder.configure(this.samples.config);
    this.#decoder = decoder;
  }

  async next() {
    while (!this.#ready.length) {
      if (this.#error) throw this.#error;
      if (this.#flushed || !this.#decoder) return null;
      await this.#feed();
    }
    const frame = this.#ready.shift();
    const grabbed = await grab(frame, this.#index++, frame.timestamp / 1e6);
    frame.close();
    return grabbed;
  }

  async #feed() {
    const { list, file } = this.samples;
    if (this.#fed === list.length) {
      await this.#decoder.flush();
      this.#flushed = true;
      return;
    }
    const { offset, size, key, time } = list[this.#fed++];
    const data = await file.slice(offset, offset + size).arrayBuffer();
    if (!this.#decoder) return; // closed in the meantime
    // Decoders keep some frames back: more is fed as soon as a chunk is taken.
    const taken = new Promise((resolve) => {
      this.#wake = resolve;
      this.#decoder.ondequeue = resolve;
    });
    const type = key ? "key" : "delta";
    this.#decoder.decode(new EncodedVideoChunk({ type, timestamp: time * 1e6, data }));
    await taken;
  }

  /** From the key frame before; what lies between is decoded and dropped. */
  async rewind({ index } = { index: 0 }) {
    this.close();
    const times = this.samples.list.map(({ time }) => time).sort((a, b) => a - b);
    const wanted = times[Math.min(index, times.length - 1)];
    let key = 0;
    this.samples.list.forEach((sample, i) => {
      if (sample.key && sample.time <= wanted) key = i;
    });
    this.#fed = key;
    this.#index = times.indexOf(this.samples.list[key].time);
    this.#flushed = false;
    this.#start();
    while (this.#index < index) {
      const skipped = await this.next();
      if (!skipped) return;
      skipped.bitmap.close();
    }
  }

  close() {
    for (const frame of this.#ready) frame.close();
    this.#ready = [];
    if (this.#decoder.state !== "closed") this.#decoder.close();
    this.#decoder = null;
    this.#wake(); // pending reads return null
  }
}

/** @implements {Source} */
class ImageSource {
  live = false;
  #given = false;

  constructor(name, bitmap) {
    this.name = name;
    this.bitmap = bitmap;
  }

  get progress() {
    return this.#given ? 1 : 0;
  }

  async next() {
    if (this.#given) return null;
    this.#given = true;
    return grab(this.bitmap, 0, 0);
  }

  async rewind() {
    this.#given = false;
  }

  close() {
    this.bitmap.close();
  }
}
