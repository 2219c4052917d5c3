// Limits playback of a file to its own frame rate.

const LATE_MS = 250; // a file that is later than this does not run to catch up

export class Pace {
  #start = null;

  /** The next frame that waits is on time. */
  reset() {
    this.#start = null;
  }

  /**
   * Until a frame is due.
   * @param {number} time of the frame, s
   */
  async wait(time) {
    const now = performance.now();
    this.#start ??= { at: now, time };
    const due = this.#start.at + (time - this.#start.time) * 1000;
    if (due > now) await new Promise((resolve) => setTimeout(resolve, due - now));
    else if (now - due > LATE_MS) this.#start = { at: now, time };
  }
}
