// A video, one frame at a time: the browser decodes it, and the frame that the scrubber is at is an image like any other.

import { fill, h } from "./dom.js";
import { opening, refuse, show } from "./source.js";

const RATES = [10, 12, 12.5, 15, 20, 23.976, 24, 25, 29.97, 30, 48, 50, 59.94, 60, 90, 100, 120, 240];
const MEASURED = 16;
const MEASURE_MS = 4000;
const SETTLE_MS = 120;
const DRAWN_MS = 4000;

/** The scrubber of the video that is open; empty without one. */
export const scrubber = h("div", { class: "scrubber", hidden: true });

export async function openVideo(file) {
  const video = h("video", { playsinline: true, preload: "auto" });
  const end = () => { URL.revokeObjectURL(video.src); video.removeAttribute("src"); };
  const isOver = opening(end);
  video.muted = true;
  video.src = URL.createObjectURL(file);
  try {
    await event(video, "loadeddata");
    if (!video.videoWidth) throw new Error();
    if (!Number.isFinite(video.duration)) await seek(video, 1e7);  // a recording that does not say how long it is
    const step = await frameSeconds(video);
    if (!isOver()) new Scrubber(video, file.name, step, isOver);
  } catch {
    if (isOver()) return;
    end();
    refuse(file.name, `this browser cannot play the video. Convert it first: \`ffmpeg -i INPUT -c:v libvpx-vp9 OUTPUT.webm\`.`);
    show(null, "", null);
  }
}

class Scrubber {
  constructor(video, name, step, isOver) {
    Object.assign(this, { video, name, step, isOver, at: -1, wanted: 0, busy: false });
    this.count = Math.max(1, Math.round(video.duration / step));
    this.slider = h("input", { type: "range", min: 0, max: this.count - 1, value: 0, "aria-label": "Frame", oninput: () => this.move(Number(this.slider.value)) });
    this.text = h("output", {});
    const button = (title, by) => h("button", { type: "button", onclick: () => this.move(this.wanted + by) }, title);
    fill(scrubber, h("div", { class: "row", role: "group", "aria-label": "Frames" }, button("Previous frame", -1), button("Next frame", 1), this.text), this.slider);
    this.move(0);
  }

  /** Show a frame; of several that are wanted while one is sought, the last. */
  async move(number) {
    this.wanted = Math.min(Math.max(number, 0), this.count - 1);
    this.slider.value = this.wanted;
    const seconds = this.wanted * this.step;
    this.text.textContent = `Frame ${this.wanted + 1} of ${this.count}, ${seconds.toFixed(2)} s`;
    this.slider.setAttribute("aria-valuetext", this.text.textContent);
    if (this.busy) return;
    this.busy = true;
    while (this.at !== this.wanted) {
      const next = this.wanted;
      await seekFrame(this.video, Math.min((next + 0.5) * this.step, this.video.duration), this.step);
      await new Promise((done) => { setTimeout(done, this.at < 0 ? 0 : SETTLE_MS); });
      if (this.isOver()) return;
      this.at = next;
      if (next === this.wanted) await this.give(next);
    }
    this.busy = false;
  }

  async give(number) {
    const canvas = h("canvas", { width: this.video.videoWidth, height: this.video.videoHeight });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await new Promise((done) => { canvas.toBlob(done, "image/png"); });
    const bitmap = await createImageBitmap(canvas);
    if (this.isOver()) { bitmap.close(); return; }
    show(blob, `${this.name.replace(/\.[^.]*$/, "")}-frame-${number + 1}.png`, bitmap, { frame: number });
    scrubber.hidden = false;
  }
}

function event(video, name) {
  return new Promise((done, fail) => {
    video.addEventListener(name, done, { once: true });
    video.addEventListener("error", fail, { once: true });
  });
}

async function seek(video, seconds) {
  const sought = event(video, "seeked");
  video.currentTime = seconds;
  await sought;
}

/** Seek, and wait until the frame there is drawn: a busy browser draws it long after "seeked", and the former until then. */
async function seekFrame(video, seconds, step) {
  const drawn = new Promise((done) => {
    setTimeout(done, DRAWN_MS);  // a page that nobody sees draws nothing
    const next = (_, { mediaTime }) => {
      // One that is drawn before "seeked" may still be of what was played.
      if (!video.seeking || (mediaTime <= seconds && seconds - mediaTime < step)) done();
      else video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
  });
  await seek(video, seconds);
  await drawn;
}

/** Return how long a frame is shown, from when the first frames are: files do not tell it to scripts. */
async function frameSeconds(video) {
  const times = [];
  await seek(video, 0);
  video.playbackRate = 0.5;
  await video.play();
  await new Promise((done) => {
    const timer = setTimeout(done, MEASURE_MS);
    const finish = () => { clearTimeout(timer); done(); };
    video.addEventListener("ended", finish, { once: true });
    const next = (_, { mediaTime }) => {
      times.push(mediaTime);
      if (times.length < MEASURED) video.requestVideoFrameCallback(next);
      else finish();
    };
    video.requestVideoFrameCallback(next);
  });
  video.pause();
  const steps = times.slice(1).map((time, index) => time - times[index]).filter((step) => step > 0.001);
  if (!steps.length) return 1 / 25;
  const shortest = Math.min(...steps);
  const span = times[times.length - 1] - times[0];
  const rate = Math.round(span / shortest) / span;  // a busy browser leaves out some of them
  return 1 / (RATES.find((known) => Math.abs(known / rate - 1) < 0.015) ?? rate);
}
