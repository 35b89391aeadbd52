// The worker under JavaScript, in Node and in a page: the protocol of `__main__.py`, as far as checking and timing a file
// need it. It needs onnxruntime-web only. Times are in nanoseconds.
//
// Feeds and outputs are files of tensors named `index/value`, in the format of safetensors: eight bytes with the length
// of a JSON header, the header, and the bytes of the tensors.

const PROTOCOL = 1;
const [_TICKS, _MOST] = [50, 1000]; // steps of the clock that a time takes at least; inferences in one time at most
const TYPES = {
  float32: ["F32", Float32Array], float64: ["F64", Float64Array], float16: ["F16", Uint16Array],
  int64: ["I64", BigInt64Array], int32: ["I32", Int32Array], int16: ["I16", Int16Array], int8: ["I8", Int8Array],
  uint64: ["U64", BigUint64Array], uint32: ["U32", Uint32Array], uint16: ["U16", Uint16Array], uint8: ["U8", Uint8Array],
  bool: ["BOOL", Uint8Array],
};
const BY_CODE = Object.fromEntries(Object.entries(TYPES).map(([type, [code, array]]) => [code, [type, array]]));

/** The tensors of a file: name -> [type, typed array, shape]. */
export function unpacked(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  return Object.fromEntries(Object.entries(header).map(([name, { dtype, shape, data_offsets: [begin, end] }]) => {
    const [type, array] = BY_CODE[dtype];
    const own = bytes.slice(8 + length + begin, 8 + length + end); // aligned
    return [name, [type, new array(own.buffer), shape]];
  }));
}

/** A file of tensors: the reverse of `unpacked`. */
export function packed(tensors) {
  const header = {};
  let offset = 0;
  for (const [name, [type, data, shape]] of Object.entries(tensors)) {
    header[name] = { dtype: TYPES[type][0], shape, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  const words = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + words.length + offset);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(words.length), true);
  bytes.set(words, 8);
  offset = 8 + words.length;
  for (const [, data] of Object.values(tensors)) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), offset);
    offset += data.byteLength;
  }
  return bytes;
}

/** One session and its feeds. `files` has read(path) -> bytes and write(path, bytes). */
export class Server {
  constructor(ort, files, about) {
    Object.assign(this, { ort, files, about, session: null, feeds: [], turn: 0, last: 0, tick: resolution() });
  }

  async hello() {
    return { protocol: PROTOCOL, onnxruntime: this.ort.env.versions.web, tick_ms: this.tick, ...this.about };
  }

  async open({ model, provider = "wasm", threads = 1, external = {} }) {
    if (threads > 1 && this.about.isolated === false) throw Error("no threads: the page is not isolated, which needs https");
    this.ort.env.wasm.numThreads = threads;
    const options = { executionProviders: [provider], logSeverityLevel: 4 };
    const data = Object.entries(external).map(async ([path, file]) => ({ path, data: await this.files.read(file) }));
    options.externalData = await Promise.all(data);
    const start = performance.now();
    this.session = await this.ort.InferenceSession.create(await this.files.read(model), options);
    return { create_ns: since(start), providers: [provider], outputs: this.session.outputNames };
  }

  async feed({ path }) {
    const found = {};
    for (const [entry, [type, data, shape]] of Object.entries(unpacked(await this.files.read(path)))) {
      const [index, name] = [entry.slice(0, entry.indexOf("/")), entry.slice(entry.indexOf("/") + 1)];
      (found[index] ??= {})[name] = new this.ort.Tensor(type, data, shape);
    }
    this.feeds = Object.keys(found).sort((a, b) => a - b).map((index) => found[index]);
    if (!this.feeds.length) this.feeds = [{}]; // a model without inputs
    [this.turn, this.last] = [0, 0];
    return { feeds: this.feeds.length };
  }

  async outputs({ path }) {
    const found = {};
    for (const [i, feed] of this.feeds.entries()) {
      for (const [name, y] of Object.entries(await this.session.run(feed))) {
        if (y.type in TYPES) found[`${i}/${name}`] = [y.type, await y.getData(), y.dims];
      }
    }
    await this.files.write(path, packed(found));
    return { outputs: this.session.outputNames };
  }

  /** Browsers make their clock coarse: inferences that it cannot tell apart are timed together, and share their time. */
  async block({ runs = 1, seconds = 0, rate = 0 }) {
    const times = [];
    const started = performance.now();
    let due = started;
    while (times.length < runs || performance.now() - started < 1e3 * seconds) {
      const together = rate || !this.last ? 1 : Math.max(1, Math.min(_MOST, Math.ceil((_TICKS * this.tick) / this.last)));
      if (rate) {
        due += 1e3 / rate;
        await new Promise((go) => setTimeout(go, Math.max(0, due - performance.now())));
      }
      const before = performance.now();
      for (let i = 0; i < together; i++) await this.session.run(this.feeds[this.turn++ % this.feeds.length]);
      this.last = (performance.now() - before) / together;
      for (let i = 0; i < together; i++) times.push(Math.round(1e6 * this.last));
    }
    return { times, start: Math.round(1e6 * started), end: nanoseconds(), wait_ns: null, switches: 0 };
  }

  async repeats() {
    const values = [];
    for (let i = 0; i < 2; i++) {
      const found = {};
      for (const [name, y] of Object.entries(await this.session.run(this.feeds[0]))) {
        if (y.type in TYPES) found[name] = [y.type, await y.getData(), y.dims];
      }
      values.push(packed(found));
    }
    return { deterministic: values[0].length === values[1].length && values[0].every((x, i) => x === values[1][i]) };
  }

  async close() {
    await this.session?.release();
    this.session = null;
    return {};
  }

  /** The answer to one request, as a line of JSON. */
  async answer(line) {
    const { do: name, ...request } = JSON.parse(line);
    try {
      return JSON.stringify({ ok: await this[name](request) });
    } catch (e) { // whatever a library throws goes back as the answer
      return JSON.stringify({ error: String(e?.message ?? e), type: e?.name ?? "Error" });
    }
  }
}

/** The step of the clock in milliseconds: 5 us where the page is isolated, 100 us elsewhere, less in Node. */
function resolution() {
  let least = Infinity;
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}

const nanoseconds = () => Math.round(1e6 * performance.now());
const since = (start) => Math.round(1e6 * (performance.now() - start));
