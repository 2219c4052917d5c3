// Label maps (one object id per pixel, row by row) and drawing into them.

/**
 * @typedef {{width: number, height: number, data: Uint8Array}} LabelMap
 * @typedef {{x: number, y: number}} Point in pixels of the frame
 * @typedef {{x: number, y: number, w: number, h: number}} Box in pixels of the frame
 */

/**
 * @param {number} width
 * @param {number} height
 * @param {Uint8Array} [data] its pixels; zeros if left out
 * @returns {LabelMap}
 */
export function labelMap(width, height, data) {
  return { width, height, data: data ?? new Uint8Array(width * height) };
}

/**
 * A stroke from one point to the next, round at both ends.
 * @param {LabelMap} map changed in place
 * @param {Point} from
 * @param {Point} to
 * @param {number} radius
 * @param {number} id 0 erases
 */
export function paintSegment(map, from, to, radius, id) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length2 = dx * dx + dy * dy;
  const top = Math.max(0, Math.floor(Math.min(from.y, to.y) - radius));
  const bottom = Math.min(map.height - 1, Math.ceil(Math.max(from.y, to.y) + radius));
  const left = Math.max(0, Math.floor(Math.min(from.x, to.x) - radius));
  const right = Math.min(map.width - 1, Math.ceil(Math.max(from.x, to.x) + radius));
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const [px, py] = [x + 0.5 - from.x, y + 0.5 - from.y];
      const along = length2 ? Math.min(1, Math.max(0, (px * dx + py * dy) / length2)) : 0;
      const [ex, ey] = [px - along * dx, py - along * dy];
      if (ex * ex + ey * ey <= radius * radius) map.data[y * map.width + x] = id;
    }
  }
}

/**
 * The inside of a closed line, by the even-odd rule.
 * @param {LabelMap} map changed in place
 * @param {Point[]} corners
 * @param {number} id
 */
export function fillPolygon(map, corners, id) {
  for (let y = 0; y < map.height; y++) {
    const crossings = [];
    for (let i = 0; i < corners.length; i++) {
      const [a, b] = [corners[i], corners[(i + 1) % corners.length]];
      if (a.y <= y + 0.5 !== b.y <= y + 0.5) {
        crossings.push(a.x + ((y + 0.5 - a.y) / (b.y - a.y)) * (b.x - a.x));
      }
    }
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const start = Math.max(0, Math.ceil(crossings[i] - 0.5));
      const end = Math.min(map.width, Math.ceil(crossings[i + 1] - 0.5));
      if (start < end) map.data.fill(id, y * map.width + start, y * map.width + end);
    }
  }
}

/**
 * Object `id` becomes what `mask` says: all of it, and nothing else.
 * @param {LabelMap} map changed in place
 * @param {Uint8Array} mask not 0 where the object is
 * @param {number} id
 */
export function replaceObject(map, mask, id) {
  for (let i = 0; i < mask.length; i++) {
    if (mask[i]) map.data[i] = id;
    else if (map.data[i] === id) map.data[i] = 0;
  }
}

/**
 * @param {LabelMap} map
 * @returns {Map<number, number>} pixels of every object that has any
 */
export function countPixels(map) {
  const counts = new Uint32Array(256);
  for (const id of map.data) counts[id]++;
  const present = new Map();
  for (let id = 1; id < 256; id++) if (counts[id]) present.set(id, counts[id]);
  return present;
}
