// Statistics of the last answers, for the status line.

const KEPT = 90;
const RECENT_MS = 3000;

export class Stats {
  constructor() {
    this.reset();
  }

  reset() {
    this.frames = 0;
    this.dropped = 0;
    this.times = [];
    this.latencies = [];
    this.overheads = [];
  }

  /**
   * @param {number} latency ms from the frame's capture until its mask was painted
   * @param {number} overhead ms of these that the page itself needed
   */
  answered(latency, overhead) {
    const now = performance.now();
    this.frames++;
    this.times.push(now);
    this.times = this.times.filter((time) => now - time < RECENT_MS);
    push(this.latencies, latency);
    push(this.overheads, overhead);
  }

  /** @returns {number} answers a second, lately */
  get rate() {
    const recent = this.times.filter((time) => performance.now() - time < RECENT_MS);
    if (recent.length < 2) return 0;
    return ((recent.length - 1) * 1000) / (performance.now() - recent[0]);
  }

  /** @returns {number} ms, the median; 0 before the first answer */
  get latency() {
    return median(this.latencies);
  }

  /** @returns {number} ms, the median; 0 before the first answer */
  get overhead() {
    return median(this.overheads);
  }
}

function push(values, value) {
  values.push(value);
  if (values.length > KEPT) values.shift();
}

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;
}
