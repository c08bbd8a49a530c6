// The images that the pages work on: dropped, pasted, chosen, or golden ones of a model. Both pages share them.

import { getBlob, post } from "./api.js";
import { h, notice, picture, prose } from "./dom.js";
import { openVideo, scrubber } from "./video.js";

export const source = { file: null, name: "", bitmap: null, images: [], at: 0, frame: null, listeners: new Set() };
const EXPOSURE_MS = 700;
export const MOST = 200;
export const limits = { body: Infinity };
const VIDEO = /\.(mp4|m4v|mov|webm|mkv|avi|ogv)$/i;
let latest = 0;
let end = () => {};

/** The lines of refused files, on every page that takes images: each stays until it is dismissed. */
export const refused = h("div", { class: "stack", hidden: true });

export function refuse(name, text) {
  const line = h("div", { class: "problem row spread" }, h("p", { role: "alert" }, h("strong", {}, name), ": ", prose(text)),
    h("button", { type: "button", class: "quiet", "aria-label": `Dismiss the line of ${name}`, onclick: () => { line.remove(); refused.hidden = !refused.children.length; } }, "Dismiss"));
  refused.append(line);
  refused.hidden = false;
  while (refused.children.length > MOST) refused.firstChild.remove();
}

/** Show an image, or nothing, and let the pages know. */
export function show(file, name, bitmap, { images = [], at = 0, frame = null } = {}) {
  if (bitmap !== source.bitmap) source.bitmap?.close();
  Object.assign(source, { file, name, bitmap, images, at, frame });
  if (frame === null) scrubber.hidden = true;
  for (const listener of [...source.listeners]) listener();
}

/** Make a page's state hold nothing of a former image: what is shown, named and downloaded is of the one that is shown. */
export function forget(state, nothing) {
  if (state.image !== source.bitmap) Object.assign(state, { image: source.bitmap, error: "", busy: false, ...nothing });
}

/** End what was opened before, and return a function that says whether something else has been opened since. */
export function opening(onEnd = () => {}) {
  const mine = ++latest;
  end();
  end = onEnd;
  return () => mine !== latest;
}

/**
 * Take images, each `[name, load]`, and show the one at a place: keep its bytes to send, and decode it for the screen.
 * One that cannot be shown is left out, with a line that says why, and the next one is shown; without any, the former
 * image goes. Returns whether one is shown.
 */
export async function take(images, at = 0) {
  if (!images.length) return false;
  const isOver = opening();
  let kept = images;
  if (images.length > MOST) {
    refuse(`${images.length} images`, `this page takes at most ${MOST} at a time. \`segserve predict MODEL folder/\` segments any number.`);
    kept = [];
  }
  while (kept.length) {
    const place = Math.min(at, kept.length - 1);
    const [name, load] = kept[place];
    try {
      const file = await load();
      const bitmap = await decode(await checked(file));
      if (isOver()) return false;
      show(file, name, bitmap, { images: kept, at: place });
      return true;
    } catch (error) {
      if (isOver()) return false;
      if (error.gone) { notice(error.message); return false; }
      refuse(name, error.message);
      kept = kept.filter((_, index) => index !== place);
    }
  }
  show(null, "", null);
  return false;
}

/** Return a file that can be sent; throws an error that says why one cannot. */
export async function checked(file) {
  if (file.size > limits.body) throw new Error(`it has ${megabytes(file.size)}; the gateway takes at most ${megabytes(limits.body)} (spec.gateway.maxRequestBytes of the pool). \`segserve batch\` segments larger ones tile by tile.`);
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Error("it is a folder, or a file that cannot be read");
  }
  if (!file.size) throw new Error("the file is empty");
  return file;
}

export function takeFiles(files) {
  const [videos, images] = [[], []];
  for (const file of files) (file.type.startsWith("video/") || VIDEO.test(file.name) ? videos : images).push(file);
  if (videos.length === 1 && !images.length) { openVideo(videos[0]); return; }
  for (const { name } of videos) refuse(name, "a video is opened by itself: choose it alone");
  if (images.length) take(images.map((file) => [file.name || "pasted.png", () => file]));
  else if (videos.length) show(null, "", null);
}
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

export async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    // TIFF, HEIC and others that browsers do not know: the page's server decodes them, as `segserve predict` does.
    return createImageBitmap(await (await post("/api/preview", {}, file)).blob());
  }
}

/** Return a button that chooses files. */
export function chooser(label, primary) {
  const input = h("input", { type: "file", accept: "image/*,video/*,.tif,.tiff,.heic,.heif,.avif,.jp2,.j2k,.bmp,.ico,.tga,.ppm,.pgm,.pcx,.qoi", multiple: true, class: "hidden", tabindex: -1, "aria-hidden": "true",
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
    h("p", {}, `or paste one, choose files, or use the camera: up to ${MOST} images of any common format, or a video. They go to the model's gateway and nowhere else.`),
    h("div", { class: "row" }, chooser("Choose files", true), camera()),
    examples.length ? h("p", {}, "Or take one of the golden images:") : null,
    examples.length ? h("div", { class: "thumbs" }, examples.map(([name, , path], at) =>
      h("button", { type: "button", "aria-label": `Golden image ${name}`, onclick: () => take(examples, at) }, picture(path)))) : null);
}

/** Return the golden images of a model, as `take` takes them, with their addresses. */
export const examplesOf = (seen, model) => (seen.examples?.[model] ?? []).map((name, number) => {
  const path = `/api/models/${encodeURIComponent(model)}/examples/${number}`;
  return [name, () => getBlob(path), path];
});
