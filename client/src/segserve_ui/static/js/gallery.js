// Several images with one model: thumbnails with counts, all of them segmented with progress, a table, and downloads.

import { getFile, post } from "./api.js";
import { fill, h, notice, prose, save, tag } from "./dom.js";
import { Layers, coloursOf, shownObjects } from "./overlay.js";
import { checked, decode, take } from "./source.js";
import { summary } from "./summary.js";
import { zip } from "./zip.js";

const IN_FLIGHT = 4;
const THUMB_PX = 320;
const batch = { id: "", model: "", items: new Map(), running: null };

const status = h("p", { role: "status" });
const progress = h("progress", { value: 0, max: 1, "aria-label": "Segmented images" });
const buttons = h("div", { class: "row" });
const downloads = h("div", { class: "row", role: "group", "aria-label": "Download all results" });
const list = h("ul", { class: "strip" });
const rows = h("tbody", {});
const table = h("details", {}, h("summary", {}, "Table"), h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table of the images" },
  h("table", { class: "compact" }, h("thead", {}, h("tr", {}, ["File", "State", "Found", "Size"].map((name) => h("th", { scope: "col" }, name)))), rows)));

/** The gallery of the images that are open; hidden for a single one. */
export const gallery = h("section", { class: "card pad stack", hidden: true, "aria-label": "Gallery" },
  h("div", { class: "row spread" }, h("h2", { class: "title" }, "Gallery"), buttons), progress, status, list, table, downloads);

/** Follow which images are open, which of them is shown, and with which model they are segmented. */
export function gather(images, at, model) {
  gallery.hidden = images.length < 2;
  if (gallery.hidden) { batch.running?.abort(); batch.running = null; }
  const isOther = images.some((each) => !batch.items.has(each));
  if (isOther || model !== batch.model) {
    batch.running?.abort();
    Object.assign(batch, { id: crypto.randomUUID(), model, running: null });
    if (isOther) batch.items = new Map(images.map((each, number) => [each, new Item(each, number)]));
    else for (const item of batch.items.values()) item.forget();
    report();
  }
  if (gallery.hidden) return;
  const open = images.map((each) => batch.items.get(each));
  if (list.children.length !== open.length || list.firstChild !== open[0].tile) {
    list.replaceChildren(...open.map((item) => item.tile));
    rows.replaceChildren(...open.map((item) => item.row));
    report();
  }
  open.forEach((item, index) => item.button.setAttribute("aria-current", String(index === at)));
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    waiting.push(target);
    drawNext();
  }
}, { rootMargin: "50%" });
const waiting = [];
let drawing = false;

/** Draw thumbnails one after the other: each needs a whole picture in memory for a moment. */
async function drawNext() {
  if (drawing) return;
  drawing = true;
  while (waiting.length) {
    const item = [...batch.items.values()].find((each) => each.image === waiting[0]);
    waiting.shift();
    if (item && !item.image.src) await item.draw().catch(() => {});
  }
  drawing = false;
}

class Item {
  constructor(entry, number) {
    const [name] = entry;
    Object.assign(this, { entry, name, number });
    this.image = h("img", { alt: "" });
    this.found = h("span", {});
    this.button = h("button", { type: "button", onclick: () => { const open = shownEntries(); take(open, open.indexOf(entry)); } }, this.image, h("span", { class: "name" }, name), this.found);
    this.tile = h("li", {}, this.button);
    this.cells = ["td", "td", "td"].map((kind) => h(kind, {}));
    this.row = h("tr", {}, h("td", {}, name), this.cells);
    this.forget();
    near.observe(this.image);
  }

  forget() {
    this.set("waiting");
    this.objects = 0;
    this.atLimit = false;
  }

  set(state, text = "", size = "") {
    this.state = state;
    const tone = { done: "good", failed: "bad", running: "moving", waiting: "quiet" }[state];
    const word = { done: "segmented", failed: "failed", running: "segmenting", waiting: "not segmented" }[state];
    fill(this.cells[0], tag(tone, word));
    this.cells[1].replaceChildren(...prose(text));
    this.cells[2].textContent = size;
    fill(this.found, state === "done" ? text : state === "waiting" ? null : tag(tone, word));
    this.button.title = state === "failed" ? text : "";
  }

  /** Draw the thumbnail, with an answer over it if there is one, and keep neither picture nor masks. */
  async draw(file, answer) {
    const bitmap = await decode(file ?? await this.entry[1]());
    const scale = Math.min(1, THUMB_PX / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    if (answer) {
      const over = h("canvas");
      new Layers(answer, width, height).paint(over, { shown: shownObjects(answer, 0, new Set()), colours: coloursOf(answer, answer.kind === "semantic" || answer.kind === "panoptic"), opacity: 0.5 });
      context.drawImage(over, 0, 0);
    }
    const blob = await new Promise((done) => { canvas.toBlob(done, "image/jpeg", 0.85); });
    const url = URL.createObjectURL(blob);
    this.image.onload = () => URL.revokeObjectURL(url);
    this.image.src = url;
  }
}

const shownEntries = () => [...batch.items.values()].filter((item) => list.contains(item.tile)).map((item) => item.entry);

async function segmentAll() {
  const running = new AbortController();
  batch.running = running;
  const left = [...batch.items.values()].filter((item) => item.state !== "done" && list.contains(item.tile));
  report();
  const work = async () => {
    while (left.length && !running.signal.aborted) await segmentOne(left.shift(), running);
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, work));
  if (batch.running === running) { batch.running = null; report(); }
}

async function segmentOne(item, running) {
  const { id, model } = batch;
  item.set("running");
  try {
    const file = await checked(await item.entry[1]());
    const answer = await (await post("/api/segment", { model, batch: id, number: item.number, name: item.name }, file, running.signal)).json();
    if (running.signal.aborted) throw new DOMException("", "AbortError");
    const shown = shownObjects(answer, 0, new Set());
    item.objects = answer.kind === "semantic" ? 0 : shown.filter(Boolean).length;
    item.atLimit = answer.atLimit;
    item.set("done", summary(answer, shown, Infinity) || "nothing", `${answer.width} × ${answer.height}`);
    await item.draw(file, answer).catch(() => {});
  } catch (error) {
    if (error.gone) running.abort();
    if (running.signal.aborted) { if (batch.id === id) item.set("waiting"); return; }
    item.set("failed", error.message);
  }
  if (batch.running === running) report();
}

function report() {
  const items = [...batch.items.values()].filter((item) => list.contains(item.tile));
  const count = (state) => items.filter((item) => item.state === state).length;
  const [done, failed] = [count("done"), count("failed")];
  const objects = items.reduce((sum, item) => sum + item.objects, 0);
  progress.hidden = !batch.running;
  Object.assign(progress, { value: done + failed, max: Math.max(items.length, 1) });
  const full = items.filter((item) => item.atLimit).length;
  const parts = [`${done} of ${items.length} images segmented`, failed ? `${failed} failed` : "", objects ? `${objects.toLocaleString("en")} objects` : "",
    full ? `${full} with as many objects as the limit (maxDetections of output or a stage)` : ""];
  status.textContent = parts.filter(Boolean).join(", ");
  fill(buttons, batch.running
    ? h("button", { type: "button", class: "danger", "data-key": "batch", onclick: () => { batch.running.abort(); batch.running = null; report(); } }, "Stop")
    : h("button", { type: "button", class: "primary", "data-key": "batch", disabled: !batch.model || done === items.length, onclick: segmentAll }, done || failed ? "Segment the rest" : "Segment all"));
  const kinds = [["coco", "COCO"], ["csv", "CSV"]].map(([kind, title]) => h("button", { type: "button", "data-key": `all-${kind}`, onclick: () => saveAll(kind) }, title));
  fill(downloads, done && !batch.running ? [h("span", { class: "soft" }, "Download all results:"), kinds, h("button", { type: "button", "data-key": "all-zip", onclick: saveOverlays }, "Overlays (zip)")] : null);
}

async function saveAll(kind) {
  try {
    save(...await getFile(`/api/batches/${batch.id}/${kind}`, {}));
  } catch (error) {
    notice(error.message);
  }
}

/** Have each overlay drawn in the image's own size by the page's server, and save all in one archive. */
async function saveOverlays() {
  const button = downloads.lastChild;
  const done = [...batch.items.values()].filter((item) => item.state === "done");
  const files = [];
  button.disabled = true;
  try {
    for (const item of done) {
      button.textContent = `Drawing ${files.length + 1} of ${done.length}`;
      const drawn = await (await post(`/api/batches/${batch.id}/overlays/${item.number}`, {}, await item.entry[1]())).blob();
      files.push([`${String(item.number + 1).padStart(3, "0")}-${item.name.replace(/\.[^.]*$/, "").replaceAll(/[\\/:*?"<>|]/g, "_")}.jpg`, drawn]);
    }
    save(await zip(files), `${batch.model}-overlays.zip`);
  } catch (error) {
    notice(error.message);
  }
  report();
}
