// Pointer and keyboard input: strokes, outlines, boxes and clicks.

import { colourOf } from "./colours.js";

const STEP = 10; // pixels that an arrow key moves the cursor; 1 with Shift
const SMALLEST_BOX = 3; // pixels a side; less is a slip of the hand
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * @typedef {import("./labels.js").Point} Point
 * @typedef {"brush" | "eraser" | "lasso" | "box" | "click"} Tool
 */

export class Drawing {
  /** @type {Tool} */ tool = "brush";
  object = 1;
  /** of the brush, in pixels of the frame */ diameter = 24;
  enabled = true;
  #gesture = null;
  /** @type {Point | null} */ #pointer = null;
  /** @type {Point | null} of the keyboard */ #cursor = null;

  /**
   * @param {HTMLCanvasElement} surface takes pointer and keys
   * @param {import("./view.js").View} view
   * @param {import("./editor.js").Editor} editor
   * @param {(text: string) => void} announce for screen readers
   */
  constructor(surface, view, editor, announce) {
    Object.assign(this, { surface, view, editor, announce });
    surface.addEventListener("pointerdown", (event) => this.#pointerDown(event));
    surface.addEventListener("pointermove", (event) => this.#pointerMove(event));
    surface.addEventListener("pointerup", (event) => this.#pointerUp(event));
    surface.addEventListener("pointercancel", () => this.cancel());
    surface.addEventListener("pointerleave", () => {
      this.#pointer = null;
      this.mark();
    });
    surface.addEventListener("contextmenu", (event) => event.preventDefault());
    surface.addEventListener("keydown", (event) => this.#key(event));
    surface.addEventListener("blur", () => {
      this.#cursor = null;
      this.mark();
    });
    editor.addEventListener("changed", () => this.mark());
  }

  /** @returns {boolean} whether a stroke is being drawn */
  get drawing() {
    return this.#gesture !== null;
  }

  /** Discards the current stroke. */
  cancel() {
    if (!this.#gesture) return;
    if (this.#gesture.paints) this.editor.cancel();
    this.#gesture = null;
    this.mark();
  }

  #pointerDown(event) {
    if (!event.isPrimary || !(event.button === 0 || event.button === 2)) return;
    event.preventDefault();
    this.surface.focus({ preventScroll: true });
    this.#cursor = null;
    if (this.#down(this.view.toFrame(event), event.altKey || event.button === 2)) {
      this.surface.setPointerCapture(event.pointerId);
    }
  }

  #pointerMove(event) {
    if (!event.isPrimary) return;
    const events = this.#gesture ? event.getCoalescedEvents?.() : null;
    for (const one of events?.length ? events : [event]) this.#move(this.view.toFrame(one));
    this.#pointer =
      event.pointerType === "touch" && !this.#gesture ? null : this.view.toFrame(event);
    this.mark();
  }

  #pointerUp(event) {
    if (event.isPrimary) this.#up();
  }

  /** @returns {boolean} whether a gesture began */
  #down(point, negative) {
    if (!this.enabled || this.#gesture || !this.editor.hold()) return false;
    const { tool } = this;
    const paints = tool === "brush" || tool === "eraser";
    this.#gesture = { tool, paints, negative, line: [point], start: point, end: point };
    if (paints) {
      this.editor.begin();
      this.#paint(point, point);
    }
    this.mark();
    return true;
  }

  #move(point) {
    const gesture = this.#gesture;
    if (!gesture) return;
    if (gesture.paints) this.#paint(gesture.end, point);
    if (gesture.tool === "lasso") gesture.line.push(point);
    gesture.end = point;
  }

  #up() {
    const gesture = this.#gesture;
    if (!gesture) return;
    this.#gesture = null;
    if (gesture.paints) this.editor.end();
    if (gesture.tool === "lasso") this.editor.fill(gesture.line, this.object);
    if (gesture.tool === "box") {
      const box = this.#boxOf(gesture);
      if (Math.min(box.w, box.h) < SMALLEST_BOX) this.editor.letGo();
      else this.editor.addBox(this.object, box);
    }
    if (gesture.tool === "click") {
      this.editor.addPoint(this.object, this.#inside(gesture.end), !gesture.negative);
    }
    this.mark();
  }

  #paint(from, to) {
    const id = this.tool === "eraser" ? 0 : this.object;
    this.editor.segment(from, to, this.diameter / 2, id);
  }

  #inside({ x, y }) {
    const { width, height } = this.view.canvas;
    return { x: Math.min(width - 1, Math.max(0, x)), y: Math.min(height - 1, Math.max(0, y)) };
  }

  #boxOf({ start, end }) {
    const [a, b] = [this.#inside(start), this.#inside(end)];
    const [x, y] = [Math.floor(Math.min(a.x, b.x)), Math.floor(Math.min(a.y, b.y))];
    return { x, y, w: Math.ceil(Math.max(a.x, b.x)) - x, h: Math.ceil(Math.max(a.y, b.y)) - y };
  }

  /** Arrows move a cursor, X puts the tool down and lifts it. */
  #key(event) {
    const arrow = ARROWS[event.key];
    const puts = event.key.toLowerCase() === "x" && !event.ctrlKey && !event.metaKey;
    if (!this.enabled || !(arrow || puts)) return;
    event.preventDefault();
    event.stopPropagation();
    const { width, height } = this.view.canvas;
    this.#cursor ??= { x: width / 2, y: height / 2 };
    if (arrow) {
      const step = event.shiftKey ? 1 : STEP;
      this.#cursor = this.#inside({
        x: this.#cursor.x + arrow[0] * step,
        y: this.#cursor.y + arrow[1] * step,
      });
      this.#move(this.#cursor);
      this.mark();
      return;
    }
    if (event.repeat) return;
    if (this.#gesture) {
      this.#up();
      this.#say("up");
    } else if (this.#down(this.#cursor, event.altKey || event.shiftKey)) {
      this.#say("down");
      if (this.tool === "click") this.#up();
    }
  }

  #say(what) {
    const at = `${Math.round(this.#cursor.x)}, ${Math.round(this.#cursor.y)}`;
    const text = {
      box: { down: `First corner at ${at}.`, up: `Second corner at ${at}.` },
      lasso: { down: `Outline begins at ${at}.`, up: "Outline closed." },
      click: { down: `Click at ${at}.` },
    }[this.tool] ?? { down: `${this.tool} down at ${at}.`, up: `${this.tool} up at ${at}.` };
    this.announce(text[what]);
  }

  /** Redraws the marks of the tool. */
  mark() {
    const { editor, tool } = this;
    const gesture = this.#gesture;
    const at = this.#pointer ?? this.#cursor;
    const round = (tool === "brush" || tool === "eraser") && at && this.enabled;
    this.view.mark({
      colour: tool === "eraser" ? "#ffffff" : colourOf(this.object),
      circle: round ? { ...at, radius: this.diameter / 2 } : undefined,
      cross: this.#cursor ?? undefined,
      line: gesture?.tool === "lasso" ? gesture.line : undefined,
      box: gesture?.tool === "box" ? this.#boxOf(gesture) : (editor.assist?.box ?? undefined),
      points: editor.assist?.points,
    });
  }
}
