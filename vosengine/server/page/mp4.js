// Index of an MP4 or MOV with H.264: offset and presentation time of every sample.

/**
 * @typedef {{offset: number, size: number, time: number, key: boolean}} Sample
 *   bytes in the file; `time` in seconds; in the order of decoding
 * @typedef {{file: Blob, config: VideoDecoderConfig, list: Sample[]}} Samples
 */

const MOST_INDEX_BYTES = 64 << 20;

/**
 * @param {Blob} file
 * @returns {Promise<Samples | null>} null for any other file, and for what only a player can show:
 *   turned or in fragments
 */
export async function openMp4(file) {
  const moov = await findMoov(file);
  if (!moov) return null;
  for (const track of boxes(moov, "trak")) {
    const media = box(track, "mdia");
    if (!media || text(box(media, "hdlr"), 8) !== "vide") continue;
    const table = box(box(media, "minf"), "stbl");
    const config = table && readConfig(box(table, "stsd"));
    if (!config || isTurned(box(track, "tkhd"))) return null;
    const header = box(media, "mdhd");
    const timescale = header.getUint32(header.getUint8(0) === 1 ? 20 : 12);
    const list = readSamples(table, timescale);
    return list.length ? { file, config, list } : null;
  }
  return null;
}

async function findMoov(file) {
  let at = 0;
  while (at + 16 <= file.size) {
    const head = new DataView(await file.slice(at, at + 16).arrayBuffer());
    const name = text(head, 4);
    let size = head.getUint32(0);
    let start = 8;
    if (size === 1) [size, start] = [Number(head.getBigUint64(8)), 16];
    if (at === 0 && !["ftyp", "moov", "wide", "free", "skip", "mdat"].includes(name)) return null;
    if (size === 0) size = file.size - at;
    if (size < start) return null;
    if (name === "moov") {
      if (size > MOST_INDEX_BYTES) return null;
      return new DataView(await file.slice(at + start, at + size).arrayBuffer());
    }
    at += size;
  }
  return null;
}

/** The boxes of a name within a box. */
function* boxes(view, name) {
  let at = 0;
  while (view && at + 8 <= view.byteLength) {
    const size = view.getUint32(at);
    if (size < 8 || at + size > view.byteLength) return;
    if (text(view, at + 4) === name)
      yield new DataView(view.buffer, view.byteOffset + at + 8, size - 8);
    at += size;
  }
}

function box(view, name) {
  return boxes(view, name).next().value;
}

function from(view, at) {
  return new DataView(view.buffer, view.byteOffset + at, view.byteLength - at);
}

function text(view, at) {
  return view ? String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(at + i))) : "";
}

/** @returns {boolean} whether a player would turn or mirror the picture */
function isTurned(header) {
  const matrix = header.getUint8(0) === 1 ? 52 : 40;
  return [1, 0, 0, 1].some(
    (value, i) => header.getInt32(matrix + [0, 4, 12, 16][i]) !== value << 16,
  );
}

function readConfig(description) {
  if (!description) return null;
  const entry = box(from(description, 8), "avc1");
  if (!entry) return null;
  const avc = box(from(entry, 78), "avcC");
  if (!avc) return null;
  const hex = [1, 2, 3].map((i) => avc.getUint8(i).toString(16).padStart(2, "0")).join("");
  return {
    codec: `avc1.${hex}`,
    codedWidth: entry.getUint16(24),
    codedHeight: entry.getUint16(26),
    description: new Uint8Array(avc.buffer, avc.byteOffset, avc.byteLength),
    optimizeForLatency: true,
  };
}

function readSamples(table, timescale) {
  const sizes = readSizes(box(table, "stsz"));
  const offsets = readOffsets(table, sizes);
  const times = readTimes(table, sizes.length, timescale);
  const sync = box(table, "stss");
  const keys = sync ? new Set(numbers(sync, 1)) : null; // without the box all are key pictures
  const first = times.reduce((a, b) => Math.min(a, b), Infinity);
  return sizes.map((size, i) => ({
    size,
    offset: offsets[i],
    time: times[i] - first,
    key: keys ? keys.has(i + 1) : true,
  }));
}

/** A table of 32-bit numbers after version, flags and count. */
function numbers(view, columns, signed = false) {
  const count = view.getUint32(4) * columns;
  return Array.from({ length: count }, (_, i) =>
    signed ? view.getInt32(8 + 4 * i) : view.getUint32(8 + 4 * i),
  );
}

function readSizes(view) {
  if (!view) return [];
  const [all, count] = [view.getUint32(4), view.getUint32(8)];
  return Array.from({ length: count }, (_, i) => all || view.getUint32(12 + 4 * i));
}

function readOffsets(table, sizes) {
  const [narrow, wide] = [box(table, "stco"), box(table, "co64")];
  const chunks = narrow
    ? numbers(narrow, 1)
    : Array.from({ length: wide.getUint32(4) }, (_, i) => Number(wide.getBigUint64(8 + 8 * i)));
  const runs = numbers(box(table, "stsc"), 3); // first chunk, samples a chunk, description
  const offsets = [];
  let run = 0;
  chunks.forEach((start, chunk) => {
    if (runs[run + 3] === chunk + 1) run += 3;
    let at = start;
    for (let i = 0; i < runs[run + 1] && offsets.length < sizes.length; i++) {
      offsets.push(at);
      at += sizes[offsets.length - 1];
    }
  });
  return offsets;
}

function readTimes(table, count, timescale) {
  const times = [];
  const durations = numbers(box(table, "stts"), 2);
  let clock = 0;
  for (let i = 0; i < durations.length; i += 2) {
    for (let n = 0; n < durations[i]; n++, clock += durations[i + 1]) times.push(clock);
  }
  const shifts = box(table, "ctts");
  if (shifts) {
    const values = numbers(shifts, 2, true);
    for (let i = 0, at = 0; i < values.length; i += 2) {
      for (let n = 0; n < values[i]; n++, at++) times[at] += values[i + 1];
    }
  }
  return times.slice(0, count).map((time) => time / timescale);
}
