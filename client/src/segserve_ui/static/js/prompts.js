// Clicks and boxes on the picture, for models that segment what these select.

import { post } from "./api.js";
import { h } from "./dom.js";
import { source } from "./source.js";

const DRAGGED_PX = 5;
const STEP = 1 / 50;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Return prompts as the page's server reads them. */
const written = (given) => {
  const text = (...numbers) => numbers.map((value) => Math.round(value * 100) / 100).join(",");
  const points = (foreground) => given.filter((each) => !each.width && each.foreground === foreground).map(({ x, y }) => text(x, y));
  const box = given.findLast((each) => each.width);
  return { point: points(true), background: points(false), box: box ? text(box.x, box.y, box.width, box.height) : "" };
};

/** The prompts of one object in the image that is shown; `ask` is called whenever they change, `repaint` for a drag. */
export class Prompts {
  constructor(canvas, ask, repaint) {
    // Drawn at the screen's resolution, whatever the image's.
    this.marks = h("canvas", { class: "marks", "aria-hidden": "true" });
    Object.assign(this, { canvas, ask, repaint, size: null, given: [], foreground: true, multimask: false, drag: null, cursor: null, sent: {}, last: {}, before: "", current: "" });
    canvas.addEventListener("pointerdown", (event) => { if (this.size && event.button === 0 && !event.ctrlKey) this.#press(event); });
    canvas.addEventListener("pointermove", (event) => { if (this.drag) this.#move(event); });
    canvas.addEventListener("pointerup", (event) => { if (this.drag) this.#release(event); });
    canvas.addEventListener("pointercancel", () => { this.drag = null; this.repaint(); });
    canvas.addEventListener("contextmenu", (event) => {
      if (!this.size) return;
      event.preventDefault();
      this.drag = null;  // of the press that came before it on touch screens
      this.add({ ...this.#place(event), foreground: false });
    });
    canvas.addEventListener("keydown", (event) => { if (this.size) this.#key(event); });
  }

  /** Forget all for another image or model, whose size the first answer gives; returns whether it is another. */
  begin(model) {
    if (this.file === source.file && this.model === model) return false;
    this.clear();
    Object.assign(this, { file: source.file, model, size: null, last: {}, before: "", current: "" });
    this.canvas.classList.remove("prompted");
    return true;
  }

  /** Take clicks in pixels of an answer, which is to the present prompts. */
  answered({ id, width, height }) {
    Object.assign(this, { current: id, size: [width, height], last: { given: [...this.given], multimask: this.multimask } });
    this.canvas.classList.add("prompted");
  }

  /** Have the prompts that were answered last. */
  restore() { Object.assign(this, { given: [...this.last.given ?? []], multimask: this.last.multimask ?? this.multimask }); }

  /** Forget the prompts, for another image or object. */
  clear() { Object.assign(this, { given: [], drag: null, cursor: null }); }

  add(prompt) {
    // Of boxes the last one counts.
    this.given.push(prompt);
    this.ask();
  }

  /** Keep the objects so far, and select another one beside them. */
  next() { Object.assign(this, { before: this.current }); this.clear(); this.ask(); }

  /** Forget all objects of this image. */
  restart() { this.before = ""; this.clear(); this.ask(); }

  undo() { if (this.given.pop()) this.ask(); }

  /** Return the prompts as parameters of a call that gives the same answer. */
  get parameters() { return { ...written(this.given), multimask: this.multimask ? "1" : "" }; }

  /** Return the answer to the prompts; the image is sent once, and again if the page's server no longer keeps it. */
  async answer(model, signal) {
    const { sent } = this;
    const given = { ...this.parameters, before: this.before };
    const isKept = sent.model === model && sent.file === source.file;
    if (isKept) {
      try {
        return await (await post(`/api/prompts/${sent.image}`, given, undefined, signal)).json();
      } catch (error) {
        if (error.kind !== "GoneAnswerError") throw error;
      }
    }
    const file = source.file;
    const answer = await (await post("/api/prompts", { model, ...given }, file, signal)).json();
    this.sent = { model, file, image: answer.image };
    return answer;
  }

  /** Return the buttons for what the pointer does, and to take prompts back. */
  controls() {
    const kind = (foreground, title) => h("label", { class: "row" },
      h("input", { type: "radio", name: "prompt", checked: this.foreground === foreground, "data-key": `prompt-${title}`, onchange: () => { this.foreground = foreground; } }), title);
    return h("section", {}, h("h2", {}, "Prompts"),
      h("p", { class: "soft" }, "Click on an object, or drag a box around it. A right click is of the background. With the keyboard, arrows move a cross, Enter clicks, and N goes on to the next object."),
      h("div", { class: "row", role: "radiogroup", "aria-label": "A click is of the" }, kind(true, "Object"), kind(false, "Background")),
      h("label", { class: "row" }, h("input", { type: "checkbox", checked: this.multimask, "data-key": "multimask", onchange: (event) => { this.multimask = event.target.checked; if (this.given.length) this.ask(); } }), "Several masks"),
      h("div", { class: "row" },
        h("button", { type: "button", "data-key": "undo", disabled: !this.given.length, onclick: () => this.undo() }, "Undo"),
        h("button", { type: "button", "data-key": "clear", disabled: !this.given.length, onclick: () => { this.clear(); this.ask(); } }, "Clear"),
        h("button", { type: "button", "data-key": "next", disabled: !this.given.length, onclick: () => this.next() }, "Next object"),
        h("button", { type: "button", "data-key": "restart", disabled: !this.before, onclick: () => this.restart() }, "Start over"),
        h("span", { class: "soft", role: "status" }, `${this.given.length} ${this.given.length === 1 ? "prompt" : "prompts"}`)));
  }

  /** Draw the clicks, the box and the cross over the masks. */
  paint() {
    const unit = window.devicePixelRatio || 1;
    const { marks, canvas } = this;
    Object.assign(marks, { width: Math.round(canvas.clientWidth * unit), height: Math.round(canvas.clientHeight * unit) });
    marks.style.width = `${canvas.clientWidth}px`;
    if (!this.size) return;
    const context = marks.getContext("2d");
    const [across, down] = [marks.width / this.size[0], marks.height / this.size[1]];
    const box = this.drag?.box ?? this.given.findLast((each) => each.width);
    if (box) {
      for (const [colour, offset] of [["#ffffff", 0], ["#101820", 5]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: 2 * unit, lineDashOffset: offset * unit });
        context.setLineDash([5 * unit, 5 * unit]);
        context.strokeRect(box.x * across, box.y * down, box.width * across, box.height * down);
      }
      context.setLineDash([]);
    }
    for (const { x, y, foreground } of this.given.filter((each) => !each.width)) {
      context.beginPath();
      context.arc(x * across, y * down, 6 * unit, 0, 2 * Math.PI);
      Object.assign(context, { fillStyle: foreground ? "#137a3a" : "#b3261e", strokeStyle: "#ffffff", lineWidth: 2 * unit });
      context.fill();
      context.stroke();
      // Not by colour alone: a plus, or a minus.
      context.beginPath();
      for (const [dx, dy] of foreground ? [[3, 0], [0, 3]] : [[3, 0]]) {
        context.moveTo(x * across - dx * unit, y * down - dy * unit);
        context.lineTo(x * across + dx * unit, y * down + dy * unit);
      }
      context.stroke();
    }
    if (this.cursor) {
      const [x, y] = [this.cursor.x * across, this.cursor.y * down];
      for (const [colour, width] of [["#ffffff", 4], ["#101820", 2]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: width * unit });
        context.beginPath();
        for (const [dx, dy] of [[9, 0], [0, 9]]) {
          context.moveTo(x - dx * unit, y - dy * unit);
          context.lineTo(x + dx * unit, y + dy * unit);
        }
        context.stroke();
      }
    }
  }

  #place(event) {
    const area = this.canvas.getBoundingClientRect();
    const at = (along, most, size) => Math.min(Math.max((along / most) * size, 0), size);
    return { x: at(event.clientX - area.left, area.width, this.size[0]), y: at(event.clientY - area.top, area.height, this.size[1]) };
  }

  #press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    Object.assign(this, { cursor: null, drag: { from: this.#place(event), x: event.clientX, y: event.clientY, box: null } });
  }

  #move(event) {
    const { drag } = this;
    if (!drag.box && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < DRAGGED_PX) return;
    const to = this.#place(event);
    const [x, y] = [Math.min(drag.from.x, to.x), Math.min(drag.from.y, to.y)];
    drag.box = { x, y, width: Math.abs(drag.from.x - to.x), height: Math.abs(drag.from.y - to.y) };
    this.repaint();
  }

  #release() {
    const { from, box } = this.drag;
    this.drag = null;
    if (!box) this.add({ ...from, foreground: this.foreground });
    else if (box.width >= 1 && box.height >= 1) this.add(box);
    else this.repaint();
  }

  #key(event) {
    const step = STEPS[event.key];
    const [width, height] = this.size;
    if (event.altKey || (event.ctrlKey || event.metaKey) !== (event.key === "z")) return;
    if (step) {
      const { x, y } = this.cursor ?? { x: width / 2, y: height / 2 };
      const within = (at, most) => Math.min(Math.max(at, 0), most);
      this.cursor = { x: within(x + step[0] * STEP * width, width), y: within(y + step[1] * STEP * height, height) };
      this.repaint();
    } else if (event.key === "n" && this.given.length) this.next();
    else if (event.key === "Enter" && this.cursor) this.add({ ...this.cursor, foreground: this.foreground !== event.shiftKey });
    else if (event.key === "Backspace" || event.key === "z") this.undo();
    else if (event.key === "Escape") { this.clear(); this.ask(); } else return;
    event.preventDefault();
  }
}
