// One stream over an export of `stm` or `munet` (policy "memory") in onnxruntime-web.
// The protocol is that of docs/onnx.md: prepare, encode, segment, finish, remember.

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, uint8: Uint8Array, bool: Uint8Array };

/** Values as the data of an `int64` tensor. */
const integers = (values) => BigInt64Array.from(values, (value) => BigInt(value));

/** A tensor with `size` along one axis: cut, or padded with zeros at the end. */
function resized(ort, tensor, axis, size) {
  const dims = tensor.dims.with(axis, size);
  const inner = dims.slice(axis + 1).reduce((a, b) => a * b, 1);
  const outer = dims.slice(0, axis).reduce((a, b) => a * b, 1);
  const from = tensor.dims[axis] * inner;
  const to = size * inner;
  const data = new tensor.data.constructor(outer * to);
  for (let row = 0; row < outer; row++) {
    data.set(tensor.data.subarray(row * from, row * from + Math.min(from, to)), row * to);
  }
  return new ort.Tensor(tensor.type, data, dims);
}

export class WebSegmenter {
  /**
   * Load an export.
   *
   * ort      the module onnxruntime-web
   * folder   URL of the folder with model.json and the graphs
   * size     short side of the network's input in pixels; undefined: the model's default
   * session  options for every InferenceSession
   *
   * Throws an Error for an export of another policy, with fixed axes or with custom operators.
   */
  static async open(ort, folder, { size, session = {} } = {}) {
    const base = new URL(`${folder.replace(/\/$/, "")}/`, globalThis.location?.href);
    const answer = await fetch(new URL("model.json", base));
    if (!answer.ok) throw new Error(`${base}model.json: ${answer.status}; wanted an export`);
    const manifest = await answer.json();
    if (manifest.policy !== "memory" || !manifest.dynamic) {
      throw new Error(
        `${manifest.model}: wanted a dynamic export of stm or munet, given policy ` +
          `"${manifest.policy}", ${manifest.dynamic ? "dynamic" : "static"}`,
      );
    }
    if (manifest.ops === "vosengine") {
      throw new Error(`${manifest.model}: wanted an export with --ops standard, given vosengine`);
    }
    const sessions = {};
    for (const [verb, graph] of Object.entries(manifest.graphs)) {
      const url = new URL(graph.file, base).href;
      sessions[verb] = await ort.InferenceSession.create(url, session);
    }
    return new WebSegmenter(ort, { ...manifest, size: size ?? manifest.size }, sessions);
  }

  constructor(ort, manifest, sessions) {
    this.ort = ort;
    this.manifest = manifest;
    this.sessions = sessions;
    this.reset();
  }

  /** Start a new stream; its frames may have another size. */
  reset() {
    this.ids = []; // object ids by row
    this.alive = 0; // number of rows that the memory contains
    this.frameIndex = 0;
    this.features = null; // of the previous frame
    this.state = null;
    this.size = null;
  }

  /**
   * Segment the next frame.
   *
   * frame    { data, width, height }: RGBA bytes, like ImageData
   * prompt   Uint8Array [height * width] of object ids 1..255 (0: unmarked), or null; adds new
   *          objects and corrects existing ones
   * returns  Uint8Array [height * width] of object ids, 0 for background
   *
   * Throws a RangeError, before any change, for a frame or prompt of another size, or for more
   * objects than the export allows.
   */
  async step(frame, prompt = null) {
    const { fresh, shown } = this.#check(frame, prompt);
    if (this.state === null) this.#begin(frame);
    this.ids.push(...fresh);
    if (fresh.length > 0) this.#resize("objects", this.ids.length);
    const values = await this.#encode(frame);
    if (this.ids.length === 0) {
      this.frameIndex += 1;
      return new Uint8Array(frame.width * frame.height);
    }
    const rowOf = new Uint8Array(256);
    this.ids.forEach((id, row) => (rowOf[id] = 1 + row));
    const rows = this.ids.length;
    const bools = (test) => this.#tensor("bool", Uint8Array.from(this.ids, test), [rows]);
    values["caller.alive"] = bools((_, row) => row < this.alive);
    values["caller.prompted"] = bools((id) => shown.has(id));
    values["caller.prompt"] = this.#tensor(
      "uint8",
      prompt ? prompt.map((id) => rowOf[id]) : new Uint8Array(frame.width * frame.height),
      [frame.height, frame.width],
    );
    values["segment.logits"] =
      this.alive > 0
        ? (await this.#run("segment", values)).logits
        : this.#tensor("float32", new Float32Array(rows), [rows, 1, 1]);
    const labels = await this.#finish(values);
    await this.#remember(values);
    const table = Uint8Array.from([0, ...this.ids]);
    return labels.map((row) => table[row]);
  }

  /** Remove an object; the last row takes its place. Throws a RangeError for an unknown id. */
  remove(id) {
    const row = this.ids.indexOf(id);
    if (row < 0) throw new RangeError(`no object ${id}; existing: ${this.ids.join(", ")}`);
    const last = this.ids.length - 1;
    for (const port of this.manifest.state) {
      const axis = port.axes.indexOf("objects");
      if (axis < 0) continue;
      if (axis > 0) throw new Error(`${port.name}: wanted objects along the first axis`);
      const tensor = this.state[`state.${port.name}`];
      const stride = tensor.data.length / (last + 1);
      tensor.data.copyWithin(row * stride, last * stride);
      this.state[`state.${port.name}`] = resized(this.ort, tensor, 0, last);
    }
    this.ids[row] = this.ids[last];
    this.ids.pop();
    this.alive = this.ids.length;
  }

  #tensor(type, data, dims) {
    return new this.ort.Tensor(type, data, dims);
  }

  #check(frame, prompt) {
    const { width, height } = frame;
    if (this.size && (this.size[0] !== height || this.size[1] !== width)) {
      throw new RangeError(`frame: wanted ${this.size.join("x")}, given ${height}x${width}`);
    }
    if (prompt && prompt.length !== width * height) {
      throw new RangeError(`prompt: wanted ${width * height} pixels, given ${prompt.length}`);
    }
    const shown = new Set(prompt ?? []);
    shown.delete(0);
    const fresh = [...shown].filter((id) => !this.ids.includes(id)).sort((a, b) => a - b);
    const count = this.ids.length + fresh.length;
    if (count > this.manifest.max_objects) {
      throw new RangeError(`prompt: wanted at most ${this.manifest.max_objects} objects, given ${count}`);
    }
    if (count === 0 && this.state === null) {
      throw new RangeError("prompt: wanted a mask with the first frame");
    }
    return { fresh, shown };
  }

  /** Set the geometry of the stream and create an empty memory. */
  #begin({ width, height }) {
    const { size, multiple } = this.manifest;
    const sides = [height, width];
    const scale = size === null ? 1 : size / Math.min(...sides);
    this.size = sides;
    this.resized = Array.isArray(size)
      ? size
      : sides.map((side) => Math.max(1, roundHalfToEven(side * scale)));
    const rest = this.resized.map((side) => (multiple - (side % multiple)) % multiple);
    const [top, left] = rest.map((side) => Math.floor(side / 2));
    this.padding = [left, rest[1] - left, top, rest[0] - top];
    const cells = this.resized.map((side, axis) => (side + rest[axis]) / multiple);
    this.free = { h: cells[0], w: cells[1], objects: 0, frames: 1 };
    this.state = {};
    for (const { name, dtype, shape } of this.manifest.state) {
      const dims = shape.map((axis) => this.#measure(axis));
      const count = dims.reduce((a, b) => a * b, 1);
      this.state[`state.${name}`] = this.#tensor(dtype, new ARRAYS[dtype](count), dims);
    }
  }

  /** The length of an axis: a number, "objects", or a multiple such as "2*h". */
  #measure(axis) {
    if (typeof axis === "number") return axis;
    const [name, factor] = axis.split("*").reverse();
    return Number(factor ?? 1) * this.free[name];
  }

  #resize(axis, size) {
    this.free[axis] = size;
    for (const { name, axes } of this.manifest.state) {
      const place = axes.indexOf(axis);
      if (place < 0) continue;
      const key = `state.${name}`;
      this.state[key] = resized(this.ort, this.state[key], place, size);
    }
  }

  /** Values of the graphs' sources: features of the frame and of the previous one. */
  async #encode({ data, width, height }) {
    const rgb = new Uint8Array(3 * width * height);
    for (let pixel = 0; pixel < width * height; pixel++) {
      rgb.set(data.subarray(4 * pixel, 4 * pixel + 3), 3 * pixel);
    }
    const values = {
      "caller.frame": this.#tensor("uint8", rgb, [height, width, 3]),
      "caller.resized": this.#tensor("int64", integers(this.resized), [2]),
      "caller.padding": this.#tensor("int64", integers(this.padding), [4]),
      "caller.frame_index": this.#tensor("int64", integers([this.frameIndex]), []),
    };
    for (const verb of ["prepare", "encode"]) {
      for (const [name, value] of Object.entries(await this.#run(verb, values))) {
        values[`${verb}.${name}`] = value;
      }
    }
    const features = Object.entries(values).filter(([name]) => name.startsWith("encode."));
    for (const [name, value] of this.features ?? features) values[`${name}@-1`] = value;
    this.features = features;
    return values;
  }

  /** Labels (1 + row) at the frame's size; also stores the memory's masks in `values`. */
  async #finish(values) {
    const { stride } = this.manifest.settings;
    const [left, , top] = this.padding;
    const region = [top, left, ...this.resized].map((side) => side / stride);
    const size = (sides) => this.#tensor("int64", integers(sides), [2]);
    values["caller.region"] = this.#tensor("float64", Float64Array.from(region), [4]);
    values["caller.size"] = size(this.resized);
    values["finish.masks"] = (await this.#run("finish", values)).masks;
    values["caller.size"] = size(this.size);
    return (await this.#run("finish", values)).labels.data;
  }

  async #remember(values) {
    const cursor = this.state["state.cursor"].data;
    const needed = 1 + Math.max(...Array.from(cursor, Number));
    if (needed > this.free.frames) this.#resize("frames", needed);
    const outputs = await this.#run("remember", values);
    for (const { name, source } of this.manifest.graphs.remember.outputs) {
      this.state[source] = outputs[name];
    }
    this.alive = this.ids.length;
    this.frameIndex += 1;
  }

  async #run(verb, values) {
    const session = this.sessions[verb];
    const feeds = {};
    for (const { name, source } of this.manifest.graphs[verb].inputs) {
      if (session.inputNames.includes(name)) feeds[name] = values[source] ?? this.state[source];
    }
    return session.run(feeds);
  }
}

/** Rounding as in Python, for equal sizes. */
function roundHalfToEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
