// A worker thread of a page: a `Server` of `web.mjs` with an onnxruntime-web of its own, so that each begins anew and
// ends whole. The page hands it requests and takes its answers.

import * as ort from "./ort/ort.all.min.mjs";
import { Server } from "./web.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
let server;

onmessage = async ({ data: { headers, about, n, line } }) => {
  const named = (file) => new URL(`file?path=${encodeURIComponent(file)}`, import.meta.url);
  const files = {
    async read(file) {
      const found = await fetch(named(file), { headers });
      if (!found.ok) throw Error(`not served: ${file}`);
      return new Uint8Array(await found.arrayBuffer());
    },
    async write(file, body) {
      if (!(await fetch(named(file), { method: "POST", headers, body })).ok) throw Error(`not taken: ${file}`);
    },
  };
  server ??= new Server(ort, files, about);
  postMessage({ n, answer: await server.answer(line) });
};
