// Label maps as PNG files: a canvas cannot write one byte a pixel.

import { rgbOf } from "./colours.js";
import { deflate } from "./protocol.js";

const SIGNATURE = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
const GREY = 0;
const PALETTE = 3;

/**
 * @param {import("./labels.js").LabelMap} map
 * @param {{palette: boolean}} [options] colours for the eye; otherwise 8-bit grey. Either way the
 *   bytes are the object ids.
 * @returns {Promise<Blob>} image/png
 */
export async function encodePng(map, { palette } = { palette: false }) {
  const rows = new Uint8Array((map.width + 1) * map.height); // before every row: filter 0, none
  for (let y = 0; y < map.height; y++) {
    rows.set(map.data.subarray(y * map.width, (y + 1) * map.width), y * (map.width + 1) + 1);
  }
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, map.width);
  header.setUint32(4, map.height);
  header.setUint8(8, 8);
  header.setUint8(9, palette ? PALETTE : GREY);
  const parts = [SIGNATURE, chunk("IHDR", new Uint8Array(header.buffer))];
  if (palette) parts.push(chunk("PLTE", paletteBytes()));
  parts.push(chunk("IDAT", await deflate(rows)), chunk("IEND", new Uint8Array()));
  return new Blob(parts, { type: "image/png" });
}

function paletteBytes() {
  const bytes = new Uint8Array(3 * 256);
  for (let id = 0; id < 256; id++) bytes.set(rgbOf(id), 3 * id);
  return bytes;
}

function chunk(name, body) {
  const bytes = new Uint8Array(body.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, body.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(body, 8);
  view.setUint32(body.length + 8, checksum(bytes.subarray(4, body.length + 8)));
  return bytes;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc >>> 0;
});

function checksum(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
