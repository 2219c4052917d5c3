// The page's modules that need no browser.

import assert from "node:assert/strict";
import test from "node:test";
import { inflateSync } from "node:zlib";
import { Draft } from "../../vosengine/server/page/draft.js";
import {
  countPixels,
  fillPolygon,
  labelMap,
  paintSegment,
  replaceObject,
} from "../../vosengine/server/page/labels.js";
import { encodePng } from "../../vosengine/server/page/png.js";
import { deflate, inflate, packFrame, unpackAnswer } from "../../vosengine/server/page/protocol.js";
import { encodeObjects } from "../../vosengine/server/page/rle.js";
import { Stats } from "../../vosengine/server/page/stats.js";

const count = (map, id) => countPixels(map).get(id) ?? 0;

test("a stroke is round and stays in the picture", () => {
  const map = labelMap(60, 40);
  paintSegment(map, { x: 20, y: 20 }, { x: 20, y: 20 }, 10, 1);
  assert.ok(Math.abs(count(map, 1) - Math.PI * 100) < 8);
  paintSegment(map, { x: -5, y: 20 }, { x: 90, y: 20 }, 4, 2);
  assert.equal(count(map, 2), 60 * 8);
});

test("a polygon fills its inside, by the even-odd rule", () => {
  const map = labelMap(20, 20);
  fillPolygon(
    map,
    [
      { x: 2, y: 3 },
      { x: 12, y: 3 },
      { x: 12, y: 8 },
      { x: 2, y: 8 },
    ],
    3,
  );
  assert.equal(count(map, 3), 50);
  assert.equal(map.data[3 * 20 + 2], 3);
  assert.equal(map.data[8 * 20 + 12], 0);
  fillPolygon(
    map,
    [
      { x: -9, y: -9 },
      { x: 99, y: -9 },
      { x: 99, y: 99 },
      { x: -9, y: 99 },
    ],
    4,
  );
  assert.equal(count(map, 4), 400);
});

test("an object is replaced as a whole", () => {
  const map = labelMap(4, 1, Uint8Array.of(1, 1, 2, 0));
  replaceObject(map, Uint8Array.of(0, 1, 1, 0), 1);
  assert.deepEqual([...map.data], [0, 1, 1, 0]);
});

test("strokes are undone and drawn again, one by one", () => {
  const draft = new Draft({}, labelMap(30, 30));
  const dab = (x, id) => {
    draft.beginStroke();
    paintSegment(draft.map, { x, y: 15 }, { x, y: 15 }, 4, id);
    return draft.endStroke();
  };
  assert.ok(dab(6, 1) && dab(20, 2));
  assert.equal(dab(99, 1), false, "nothing was drawn");
  const both = draft.map.data.slice();
  assert.ok(draft.undo());
  assert.equal(count(draft.map, 2), 0);
  assert.ok(draft.redo());
  assert.deepEqual(draft.map.data, both);
  assert.ok(draft.undo() && draft.undo() && !draft.undo());
  assert.ok(draft.map.data.every((id) => id === 0));
  dab(10, 3);
  assert.equal(draft.canRedo, false, "a new stroke ends what was undone");
  draft.beginStroke();
  paintSegment(draft.map, { x: 20, y: 20 }, { x: 20, y: 20 }, 4, 5);
  draft.cancelStroke();
  assert.equal(count(draft.map, 5), 0);
});

test("only objects that changed are sent; those that are gone are named", () => {
  const draft = new Draft({}, labelMap(4, 1, Uint8Array.of(1, 2, 3, 0)));
  draft.beginStroke();
  draft.map.data.set([1, 4, 3, 4]);
  draft.endStroke();
  const { changed, gone, mask } = draft.changes();
  assert.deepEqual([[...changed], [...gone], [...mask]], [[4], [2], [0, 4, 0, 4]]);
});

test("a PNG has the labels, row by row", async () => {
  const map = labelMap(3, 2, Uint8Array.of(0, 1, 2, 3, 4, 255));
  for (const palette of [false, true]) {
    const bytes = Buffer.from(await (await encodePng(map, { palette })).arrayBuffer());
    const at = bytes.indexOf("IDAT");
    const rows = inflateSync(bytes.subarray(at + 4, at + 4 + bytes.readUInt32BE(at - 4)));
    assert.deepEqual([...rows], [0, 0, 1, 2, 0, 3, 4, 255]);
    assert.equal(bytes.includes("PLTE"), palette);
  }
});

test("runs go down the columns", () => {
  // 0 1
  // 1 1
  const { counts, area, bbox } = encodeObjects(labelMap(2, 2, Uint8Array.of(0, 1, 1, 1))).get(1);
  assert.deepEqual([counts, area, bbox], ["13", 3, [0, 0, 2, 2]]);
});

test("messages are packed and unpacked", async () => {
  const message = await packFrame(
    2 ** 33 + 1,
    new Blob(["frame"]),
    new Blob(["mask"]),
  ).arrayBuffer();
  const view = new DataView(message);
  assert.deepEqual([view.getUint8(0), view.getUint8(1), view.getUint16(2, true)], [1, 1, 1]);
  assert.deepEqual([view.getUint32(4, true), view.getBigUint64(8, true)], [5, 2n ** 33n + 1n]);
  assert.equal(new TextDecoder().decode(message.slice(16)), "framemask");

  const labels = await deflate(Uint8Array.of(7, 8));
  const detail = new TextEncoder().encode('{"ids": [7, 8]}');
  const answer = new Uint8Array(16 + 8 + labels.length + detail.length);
  const header = new DataView(answer.buffer);
  header.setUint8(0, 2);
  header.setUint32(4, 8 + labels.length, true);
  header.setBigUint64(8, 5n, true);
  header.setUint32(16, 2, true);
  header.setUint32(20, 1, true);
  answer.set(labels, 24);
  answer.set(detail, 24 + labels.length);
  const found = unpackAnswer(answer.buffer);
  assert.deepEqual([found.id, found.width, found.height, found.detail.ids], [5, 2, 1, [7, 8]]);
  assert.deepEqual([...(await inflate(found.packed))], [7, 8]);
  header.setUint8(1, 1);
  assert.throws(() => unpackAnswer(answer.buffer), TypeError);
});

test("the median latency", () => {
  const stats = new Stats();
  for (const latency of [5, 90, 20]) stats.answered(latency, 1);
  assert.equal(stats.latency, 20);
});
