// The binary messages of the stream: a header of 16 bytes, then what it announces.

const HEADER_BYTES = 16;
const FRAME = 1;
const ANSWER = 2;
const WITH_PROMPT = 1;
const JPEG = 1;
const LABELS = 0;

/**
 * A frame for the server, with a mask where the person drew one.
 * @param {number} id counts up by one from the server's `next_frame`
 * @param {Blob} jpeg
 * @param {Blob | null} mask a PNG of object ids, 8-bit grey, at the frame's size
 * @returns {Blob}
 */
export function packFrame(id, jpeg, mask) {
  const header = new DataView(new ArrayBuffer(HEADER_BYTES));
  header.setUint8(0, FRAME);
  header.setUint8(1, JPEG);
  header.setUint16(2, mask ? WITH_PROMPT : 0, true);
  header.setUint32(4, jpeg.size, true);
  header.setBigUint64(8, BigInt(id), true);
  return new Blob(mask ? [header, jpeg, mask] : [header, jpeg]);
}

/**
 * An answer of the server.
 * @param {ArrayBuffer} message
 * @returns {{id: number, width: number, height: number, packed: Uint8Array,
 *   detail: {ids: number[], queue_ms: number, step_ms: number, repeated: boolean}}}
 *   `packed` is the label map, compressed by zlib
 * @throws {TypeError} for any other message
 */
export function unpackAnswer(message) {
  const header = new DataView(message);
  const [type, encoding] = [header.getUint8(0), header.getUint8(1)];
  if (type !== ANSWER || encoding !== LABELS) {
    throw new TypeError(
      `message of type ${type}, encoding ${encoding}: wanted an answer of labels`,
    );
  }
  const length = header.getUint32(4, true);
  const detail = new Uint8Array(message, HEADER_BYTES + length);
  return {
    id: Number(header.getBigUint64(8, true)),
    width: header.getUint32(HEADER_BYTES, true),
    height: header.getUint32(HEADER_BYTES + 4, true),
    packed: new Uint8Array(message, HEADER_BYTES + 8, length - 8),
    detail: JSON.parse(new TextDecoder().decode(detail)),
  };
}

/**
 * @param {Uint8Array} bytes
 * @returns {Promise<Uint8Array>} compressed by zlib
 */
export async function deflate(bytes) {
  return through(new CompressionStream("deflate"), bytes);
}

/**
 * @param {Uint8Array} bytes compressed by zlib
 * @returns {Promise<Uint8Array>}
 */
export async function inflate(bytes) {
  return through(new DecompressionStream("deflate"), bytes);
}

async function through({ readable, writable }, bytes) {
  const writer = writable.getWriter(); // without a Blob, which another process of the browser holds
  const written = [writer.write(bytes), writer.close()];
  const [buffer] = await Promise.all([new Response(readable).arrayBuffer(), ...written]);
  return new Uint8Array(buffer);
}
