// COCO's run-length encoding: runs of 0 and 1 by turns, down the columns, as text.

/**
 * Every object of a label map.
 * @param {import("./labels.js").LabelMap} map
 * @returns {Map<number, {counts: string, area: number, bbox: [number, number, number, number]}>}
 *   `bbox` is left, top, width, height
 */
export function encodeObjects(map) {
  const { width, height, data } = map;
  /** @type {Map<number, {runs: number[], end: number, area: number, box: number[]}>} */
  const objects = new Map();
  for (let x = 0, at = 0; x < width; x++) {
    for (let y = 0; y < height; y++, at++) {
      const id = data[y * width + x];
      if (!id) continue;
      let object = objects.get(id);
      if (!object) objects.set(id, (object = { runs: [], end: -1, area: 0, box: [x, y, x, y] }));
      if (object.end === at) object.runs[object.runs.length - 1]++;
      else object.runs.push(at - Math.max(0, object.end), 1);
      object.end = at + 1;
      object.area++;
      const box = object.box;
      if (y < box[1]) box[1] = y;
      if (y > box[3]) box[3] = y;
      box[2] = x;
    }
  }
  const encoded = new Map();
  for (const [id, { runs, end, area, box }] of objects) {
    if (end < width * height) runs.push(width * height - end);
    const bbox = [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1];
    encoded.set(id, { counts: countsText(runs), area, bbox });
  }
  return encoded;
}

/**
 * Five bits a character and a sign; from the fourth run on, the difference to the run two before.
 * @param {number[]} runs
 * @returns {string}
 */
export function countsText(runs) {
  let text = "";
  runs.forEach((run, i) => {
    let value = i > 2 ? run - runs[i - 2] : run;
    let more = true;
    while (more) {
      let bits = value & 0x1f;
      value >>= 5;
      more = bits & 0x10 ? value !== -1 : value !== 0;
      if (more) bits |= 0x20;
      text += String.fromCharCode(bits + 48);
    }
  });
  return text;
}
