// The image that the pages work on: dropped, pasted, chosen, or an example of a model. Both pages share it.

import { get, getBlob, post } from "./api.js";
import { h, notice, repeated } from "./dom.js";

export const source = { file: null, name: "", bitmap: null, listeners: new Set() };
const EXPOSURE_MS = 700;
export const limits = { body: Infinity };

/** Take an image: keep its bytes to send, and decode it for the screen. */
export async function take(file, name) {
  if (file.size > limits.body) {
    notice(`${name} has ${megabytes(file.size)}; the gateway takes at most ${megabytes(limits.body)} (spec.gateway.maxRequestBytes of the pool); \`segserve batch\` segments larger ones tile by tile`);
    return;
  }
  let bitmap;
  try {
    bitmap = await decode(file);
  } catch (error) {
    notice(`${name}: ${error.message}`);
    return;
  }
  source.bitmap?.close();
  Object.assign(source, { file, name, bitmap });
  for (const listener of [...source.listeners]) listener();
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    // TIFF and others that browsers do not know: the page's server decodes them.
    return createImageBitmap(await (await post("/api/preview", {}, file)).blob());
  }
}

export async function takeExample(model, number, name) {
  try {
    await take(await getBlob(`/api/models/${encodeURIComponent(model)}/examples/${number}`), name);
  } catch (error) {
    notice(error.message);
  }
}

/** Return a button that chooses a file. */
export function chooser(label, primary) {
  const input = h("input", { type: "file", accept: "image/*,.tif,.tiff", class: "hidden", tabindex: -1, "aria-hidden": "true",
    onchange: () => { if (input.files[0]) take(input.files[0], input.files[0].name); input.value = ""; } });
  return h("span", {}, input, h("button", { type: "button", class: primary ? "primary" : "", "data-key": "choose", onclick: () => input.click() }, label));
}

/** Return a button that takes a picture from the camera at once. */
function camera() {
  return h("button", { type: "button", onclick: async () => {
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: true });
      const video = h("video", { muted: true, playsinline: true });
      video.srcObject = stream;
      await video.play();
      await new Promise((done) => { setTimeout(done, EXPOSURE_MS); });  // the first frames are dark
      const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      for (const track of stream.getTracks()) track.stop();
      canvas.toBlob((blob) => take(blob, "camera.png"), "image/png");
    } catch (error) {
      notice(`no picture from the camera: ${error.message}`);
    }
  } }, "Take a picture");
}

/** Take what is dropped on an element. */
export function droppable(element) {
  element.addEventListener("dragover", (event) => { event.preventDefault(); element.classList.add("over"); });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) take(file, file.name);
    else notice("only files can be dropped here");
  });
}

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) take(file, file.name || "pasted.png");
});
// A file that misses the picture must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

/** Return the invitation that stands where no image is yet. */
export function invitation(examples) {
  return h("div", { class: "empty" },
    h("h2", { class: "title" }, "Drop an image here"),
    h("p", {}, "or paste one, choose a file, or use the camera. It goes to the model's gateway and nowhere else."),
    h("div", { class: "row" }, chooser("Choose an image", true), camera()),
    examples.length ? h("p", {}, "Or take one of the golden images:") : null,
    examples.length ? h("div", { class: "thumbs" }, examples.map(([model, number, name]) =>
      h("button", { type: "button", "aria-label": `Golden image ${name} of ${model}`, onclick: () => takeExample(model, number, name) },
        h("img", { src: `/api/models/${encodeURIComponent(model)}/examples/${number}`, alt: "", loading: "lazy" })))) : null);
}

/** Call `use` with the models, now and at each change, and `fail` with an error's text; returns what ends that. */
export function watchModels(use, fail) {
  let last = "";
  return repeated(async () => {
    try {
      const seen = await get("/api/models");
      const text = JSON.stringify(seen);
      if (text !== last) use(seen);
      last = text;
    } catch (error) {
      last = "";
      fail(error.message);
    }
  });
}

export const examplesOf = (seen, model) => (seen.examples?.[model] ?? []).map((name, number) => [model, number, name]);
