// The images that the pages work on: dropped, pasted, chosen, or golden ones of a model. Both pages share them.

import { get, getBlob, post } from "./api.js";
import { h, notice, picture } from "./dom.js";

export const source = { file: null, name: "", bitmap: null, images: [], at: 0, listeners: new Set() };
const EXPOSURE_MS = 700;
export const limits = { body: Infinity };
let latest = 0;

/**
 * Take images, each `[name, load]`, and show the one at a place: keep its bytes to send, and decode it for the screen.
 * One that cannot be shown is left out, with a notice that says why, and the next one is shown. Returns whether one is.
 */
async function take(images, at = 0) {
  if (!images.length) return false;
  const mine = ++latest;
  while (images.length) {
    const place = Math.min(at, images.length - 1);
    const [name, load] = images[place];
    try {
      const file = await load();
      if (file.size > limits.body) throw new Error(`it has ${megabytes(file.size)}; the gateway takes at most ${megabytes(limits.body)} (spec.gateway.maxRequestBytes of the pool); \`segserve batch\` segments larger ones tile by tile`);
      const bitmap = await decode(file);
      if (mine !== latest) return false;
      source.bitmap?.close();
      Object.assign(source, { file, name, bitmap, images, at: place });
      for (const listener of [...source.listeners]) listener();
      return true;
    } catch (error) {
      if (mine !== latest) return false;
      notice(`${name}: ${error.message}`);
      images = images.filter((_, index) => index !== place);
    }
  }
  return false;
}

export const takeFiles = (files) => take([...files].map((file) => [file.name || "pasted.png", () => file]));
export const takeFrom = (path, name) => take([[name, () => getBlob(path)]]);

/** Return the buttons that go through several images; null for a single one. */
export function stepper() {
  const { images, at } = source;
  const step = (key, title, to) => h("button", { type: "button", "data-key": key, disabled: !images[to], onclick: () => take(images, to) }, title);
  return images.length < 2 ? null : h("div", { class: "row", role: "group", "aria-label": "Images" },
    step("previous", "Previous", at - 1), h("span", {}, `${at + 1} of ${images.length}`), step("next", "Next", at + 1));
}

/** Draw the image onto a canvas in a size, and return the canvas. */
export function photograph(canvas, width, height) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source.bitmap, 0, 0, width, height);
  return canvas;
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

/** Return a button that chooses files. */
export function chooser(label, primary) {
  const input = h("input", { type: "file", accept: "image/*,.tif,.tiff", multiple: true, class: "hidden", tabindex: -1, "aria-hidden": "true",
    onchange: () => { takeFiles(input.files); input.value = ""; } });
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
      canvas.toBlob((blob) => take([["camera.png", () => blob]]), "image/png");
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
    if (event.dataTransfer.files.length) takeFiles(event.dataTransfer.files);
    else notice("only files can be dropped here");
  });
}

document.addEventListener("paste", (event) => {
  takeFiles([...event.clipboardData.files].filter((each) => each.type.startsWith("image/")));
});
// A file that misses the picture must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

/** Return the invitation that stands where no image is yet. */
export function invitation(examples) {
  return h("div", { class: "empty" },
    h("h2", { class: "title" }, "Drop images here"),
    h("p", {}, "or paste one, choose files, or use the camera. Each goes to the model's gateway and nowhere else."),
    h("div", { class: "row" }, chooser("Choose images", true), camera()),
    examples.length ? h("p", {}, "Or take one of the golden images:") : null,
    examples.length ? h("div", { class: "thumbs" }, examples.map(([name, , path], at) =>
      h("button", { type: "button", "aria-label": `Golden image ${name}`, onclick: () => take(examples, at) }, picture(path)))) : null);
}

/** Return the golden images of a model, as `take` takes them, with their addresses. */
export const examplesOf = (seen, model) => (seen.examples?.[model] ?? []).map((name, number) => {
  const path = `/api/models/${encodeURIComponent(model)}/examples/${number}`;
  return [name, () => getBlob(path), path];
});
