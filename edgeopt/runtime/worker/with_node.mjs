// The worker process for onnxruntime-web under Node: requests on stdin, answers on stdout; see `web.mjs`. The folder of
// the npm packages is in EDGEOPT_MODULES.

import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import readline from "node:readline";
import { pathToFileURL } from "node:url";

import { Server } from "./web.mjs";

const send = process.stdout.write.bind(process.stdout);
console.log = console.info = console.warn = console.error; // stdout contains only answers
const require = createRequire(path.resolve(process.env.EDGEOPT_MODULES ?? "node_modules", "..", "x.js"));
const ort = await import(pathToFileURL(require.resolve("onnxruntime-web")));
const files = { read: async (file) => new Uint8Array(await readFile(file)), write: writeFile };
const server = new Server(ort, files, { node: process.version });
for await (const line of readline.createInterface({ input: process.stdin })) {
  send(`${await server.answer(line)}\n`);
}
