// The canvas: a frame with its mask, and above it the marks of the current tool.

import { rgbOf } from "./colours.js";

/**
 * @typedef {import("./labels.js").LabelMap} LabelMap
 * @typedef {import("./labels.js").Point} Point
 */

export class View {
  #image;
  #marks;
  #tint = new OffscreenCanvas(1, 1);
  #pixels = null;
  #colours = new Uint32Array(256);
  #edges = new Uint32Array(256);
  #opacity = 0;

  /**
   * @param {HTMLElement} frame holds both canvases; sized here to fit `stage`
   * @param {HTMLCanvasElement} image
   * @param {HTMLCanvasElement} marks lies over it
   * @param {HTMLElement} stage
   */
  constructor(frame, image, marks, stage) {
    this.frame = frame;
    this.canvas = image;
    this.stage = stage;
    this.#image = image.getContext("2d", { alpha: false });
    this.#marks = marks;
    this.opacity = 0.5;
    new ResizeObserver(() => this.fit()).observe(stage);
  }

  get opacity() {
    return this.#opacity;
  }

  /** @param {number} value 0 to 1; takes effect with the next paint */
  set opacity(value) {
    this.#opacity = value;
    for (let id = 1; id < 256; id++) {
      const [r, g, b] = rgbOf(id);
      const colour = ((b << 16) | (g << 8) | r) >>> 0; // pixels are bytes: red first
      this.#colours[id] = (colour | (Math.round(value * 255) << 24)) >>> 0;
      this.#edges[id] = (colour | (Math.round(Math.min(1, value * 2) * 255) << 24)) >>> 0;
    }
  }

  /**
   * A frame with its own mask.
   * @param {ImageBitmap} bitmap
   * @param {LabelMap | null} labels of this very frame; null where there is none
   */
  paint(bitmap, labels) {
    const { canvas } = this;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      this.fit();
    }
    this.#image.drawImage(bitmap, 0, 0);
    if (labels) this.#paintLabels(labels);
  }

  #paintLabels({ width, height, data }) {
    if (this.#pixels?.width !== width || this.#pixels.height !== height) {
      this.#pixels = new ImageData(width, height);
      this.#tint.width = width;
      this.#tint.height = height;
    }
    let [first, last] = [0, data.length - 1];
    while (first < data.length && !data[first]) first++;
    if (first === data.length) return;
    while (!data[last]) last--;
    const top = Math.floor(first / width); // only the rows that have labels are painted
    const rows = Math.floor(last / width) + 1 - top;
    const pixels = new Uint32Array(this.#pixels.data.buffer);
    const [colours, edges] = [this.#colours, this.#edges];
    for (let i = top * width; i < (top + rows) * width; i++) {
      const id = data[i];
      const edge =
        id &&
        (data[i - 1] !== id ||
          data[i + 1] !== id ||
          data[i - width] !== id ||
          data[i + width] !== id);
      pixels[i] = edge ? edges[id] : colours[id];
    }
    const tint = this.#tint.getContext("2d");
    tint.putImageData(this.#pixels, 0, 0, 0, top, width, rows);
    this.#image.drawImage(this.#tint, 0, top, width, rows, 0, top, width, rows);
  }

  /** As large as the stage allows, at the frame's shape. */
  fit() {
    const { clientWidth, clientHeight } = this.stage;
    const margin = 2 * parseFloat(getComputedStyle(this.stage).paddingTop);
    const { width, height } = this.canvas;
    const scale = Math.min((clientWidth - margin) / width, (clientHeight - margin) / height);
    this.frame.style.width = `${Math.floor(width * scale)}px`;
    this.frame.style.height = `${Math.floor(height * scale)}px`;
    const density = window.devicePixelRatio || 1;
    this.#marks.width = Math.floor(width * scale * density);
    this.#marks.height = Math.floor(height * scale * density);
  }

  /**
   * @param {{clientX: number, clientY: number}} event
   * @returns {Point} in pixels of the frame; may lie outside
   */
  toFrame({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((clientX - box.left) / box.width) * this.canvas.width,
      y: ((clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  /**
   * Marks over the picture, all in pixels of the frame; they replace the ones before.
   * @param {{circle?: {x: number, y: number, radius: number}, cross?: Point, line?: Point[],
   *   box?: import("./labels.js").Box, points?: {x: number, y: number, positive: boolean}[],
   *   colour?: string}} marks
   */
  mark({ circle, cross, line, box, points = [], colour = "#ffffff" }) {
    const context = this.#marks.getContext("2d");
    const scale = this.#marks.width / this.canvas.width;
    context.clearRect(0, 0, this.#marks.width, this.#marks.height);
    const outline = (path) => {
      for (const [style, width] of [
        ["#000000b0", 4],
        [colour, 2],
      ]) {
        context.strokeStyle = style;
        context.lineWidth = width * (window.devicePixelRatio || 1);
        context.stroke(path);
      }
    };
    if (circle) outline(circlePath(circle.x * scale, circle.y * scale, circle.radius * scale));
    if (cross) outline(crossPath(cross.x * scale, cross.y * scale, this.#marks));
    if (box) {
      const path = new Path2D();
      path.rect(box.x * scale, box.y * scale, box.w * scale, box.h * scale);
      outline(path);
    }
    if (line?.length) {
      const path = new Path2D();
      for (const { x, y } of line) path.lineTo(x * scale, y * scale);
      outline(path);
    }
    for (const { x, y, positive } of points)
      this.#markPoint(context, x * scale, y * scale, positive);
  }

  #markPoint(context, x, y, positive) {
    const unit = window.devicePixelRatio || 1;
    context.fillStyle = positive ? "#15803d" : "#b91c1c";
    context.strokeStyle = "#ffffff";
    context.lineWidth = 2 * unit;
    const path = circlePath(x, y, 8 * unit);
    context.fill(path);
    context.stroke(path);
    const sign = new Path2D();
    sign.moveTo(x - 4 * unit, y);
    sign.lineTo(x + 4 * unit, y);
    if (positive) {
      sign.moveTo(x, y - 4 * unit);
      sign.lineTo(x, y + 4 * unit);
    }
    context.stroke(sign);
  }
}

function circlePath(x, y, radius) {
  const path = new Path2D();
  path.arc(x, y, Math.max(radius, 1), 0, 2 * Math.PI);
  return path;
}

function crossPath(x, y, { width, height }) {
  const path = new Path2D();
  const arm = Math.min(width, height) / 30;
  for (const [dx, dy] of [
    [1, 0],
    [-1, 0],
    [0, 1],
    [0, -1],
  ]) {
    path.moveTo(x + dx * arm * 0.35, y + dy * arm * 0.35);
    path.lineTo(x + dx * arm, y + dy * arm);
  }
  return path;
}
