// The playground: one image, one model, its answer to look at.

import { get, getFile, post } from "./api.js";
import { alert, copyButton, fill, h, notice, save, swatch, watch } from "./dom.js";
import { gallery, gather } from "./gallery.js";
import { noModel } from "./models.js";
import { Layers, coloursOf, displaySize, fitted, shownObjects } from "./overlay.js";
import { Prompts } from "./prompts.js";
import { chooser, droppable, examplesOf, forget, invitation, photograph, refused, source, stepper } from "./source.js";
import { percent, pixels, summary } from "./summary.js";
import { scrubber } from "./video.js";

const LISTED = 300;
const FORMATS = [["coco", "COCO"], ["geojson", "GeoJSON"], ["labelme", "LabelMe"], ["label-studio", "Label Studio"], ["cvat", "CVAT"]];
const settings = { opacity: 0.5, byClass: false };

export function playground(main, given, go) {
  const state = { seen: null, model: given.get("model") ?? "", image: null, answer: null, error: "", busy: false, lowest: 0, least: 0, hidden: new Set(),
    shown: [], under: -1, pinned: -1, layers: null, calls: [], tab: 0 };
  let request = null;
  let over = false;
  let callsTimer = 0;

  const picture = h("canvas", { "aria-hidden": "true" });
  const top = h("canvas", { class: "top", tabindex: 0, role: "img", "aria-label": "no answer yet" });
  const tip = h("div", { class: "tip", hidden: true });
  const stage = h("div", { class: "stage" });
  const caption = h("div", { class: "caption", role: "status" });
  const callsCard = h("div", { class: "card", hidden: true });
  const panel = h("aside", { class: "panel card", "aria-label": "Answer" });
  const view = h("section", {});  // is not drawn again while a slider is dragged
  const parts = h("div", {});
  const controls = h("div", { class: "row" });
  const problem = h("div", {});
  droppable(stage);
  const prompts = new Prompts(top, () => segment(), () => paint());
  const isPromptable = () => Boolean(state.seen?.models.find((model) => model.name === state.model)?.prompts);

  main.replaceChildren(
    h("div", { class: "head" },
      h("div", {}, h("h1", {}, "Playground"), h("p", {}, "Give an image to a model and look at its answer.")), controls),
    problem, refused,
    h("div", { class: "play" }, h("div", { class: "stack" }, h("div", { class: "card" }, stage, scrubber, caption), gallery, callsCard), panel));

  async function segment() {
    request?.abort();
    forget(state, { answer: null, layers: null });
    if (!source.file || !state.model || !state.seen) { request = null; draw(); return; }
    const clicked = isPromptable();
    if (prompts.begin(state.model) && clicked) Object.assign(state, { answer: null, layers: null });
    const mine = new AbortController();
    request = mine;
    state.busy = true;
    draw();
    try {
      const answer = clicked ? await prompts.answer(state.model, mine.signal)
        : await (await post("/api/segment", { model: state.model, frame: source.frame }, source.file, mine.signal)).json();
      if (request !== mine || over) return;
      if (clicked) prompts.answered(answer);
      const scores = answer.objects.map((object) => object.score).filter((score) => score !== null);
      const least = answer.kind === "semantic" || !scores.length ? 0 : Math.floor(Math.min(...scores) * 100) / 100;
      Object.assign(state, { answer, error: "", lowest: least, least, hidden: new Set(), under: -1, pinned: -1 });
      if (answer.kind === "semantic" || answer.kind === "panoptic") settings.byClass = true;
      rebuild();
      loadCalls();
    } catch (error) {
      if (error.name === "AbortError" || request !== mine || over) return;
      state.error = error.text ?? error.message;
      if (clicked && state.answer) prompts.restore();  // what was answered stays
      else Object.assign(state, { answer: null, layers: null });
    }
    state.busy = false;
    draw();
    if (state.answer && !state.error) drawView();
  }

  /** Make the layers for the present room. */
  function rebuild() {
    if (!state.answer || !source.bitmap) return;
    const room = (stage.clientWidth || 800) * (window.devicePixelRatio || 1);
    const [width, height] = displaySize(state.answer, Math.max(room, 200));
    if (state.layers?.answer !== state.answer || state.layers.width !== width) state.layers = new Layers(state.answer, width, height);
    photograph(picture, width, height);
  }

  function paint() {
    const { answer, layers } = state;
    if (!layers) { prompts.paint(); return; }
    state.shown = shownObjects(answer, state.lowest, state.hidden);
    layers.paint(top, { shown: state.shown, colours: coloursOf(answer, settings.byClass), opacity: settings.opacity,
      bright: new Set([state.under, state.pinned].filter((index) => index >= 0)) });
    top.setAttribute("aria-label", `${answer.model} found ${summary(answer, state.shown) || "nothing"} in ${source.name}`);
    top.dataset.busy = state.busy;
    top.dataset.shown = state.shown.filter(Boolean).length;
    for (const canvas of [picture, top]) canvas.style.width = `${fitted(answer, stage.clientWidth || layers.width)}px`;
    prompts.paint();
  }

  function draw() {
    if (over) return;
    gather(isPromptable() ? [] : source.images, source.at, state.model);
    fill(controls,
      h("label", { class: "field" }, "Model",
        h("select", { "data-key": "model", onchange: (event) => { state.model = event.target.value; go({ model: state.model }); segment(); } },
          (state.seen?.models ?? []).map((model) => h("option", { value: model.name, selected: model.name === state.model }, model.name + (model.state.serves ? "" : ` (${model.state.word})`))))),
      source.file ? [stepper(), chooser("Other files")] : null);
    fill(problem, state.error ? alert(state.error) : null);
    callsCard.hidden = !state.answer || (isPromptable() && !prompts.given.length);
    if (!source.file) {
      fill(stage, state.seen && !state.seen.models.length ? noModel() : state.seen ? invitation(examplesOf(state.seen, state.model)) : h("p", { class: "soft" }, "Looking for models"));
      fill(caption);
      fill(panel, h("section", {}, h("h2", {}, "Answer"), h("p", { class: "soft" }, "Classes, objects, downloads and the calls that give the same answer appear here.")));
      return;
    }
    if (!stage.contains(picture)) fill(stage, picture, top, prompts.marks, tip);
    if (!state.layers) {
      photograph(picture, ...displaySize(source.bitmap, Math.max(stage.clientWidth, 200)));
      top.getContext("2d").clearRect(0, 0, top.width, top.height);
      top.setAttribute("aria-label", "no answer yet");
    }
    stage.querySelector(".busy")?.remove();
    if (state.busy && !(isPromptable() && state.answer)) stage.append(h("span", { class: "tag moving busy" }, "Segmenting"));
    if (!state.answer) {
      fill(caption, state.busy ? "Waiting for the answer" : source.name);
      fill(panel, h("section", {}, h("h2", {}, "Answer"), h("p", { class: "soft" }, state.busy ? "The model is at work." : "There is no answer.")));
      return;
    }
    if (!panel.contains(view)) fill(panel, view, parts);
    changed();
  }

  /** Bring everything up to date that depends on the sliders, on hidden classes and on what is pinned. */
  function changed() {
    const { answer } = state;
    paint();
    fill(caption,
      h("span", {}, h("strong", {}, summary(answer, state.shown) || (isPromptable() && !prompts.given.length ? "click on an object" : "nothing"))),
      h("span", {}, `${source.name}, ${answer.width} × ${answer.height}`),
      h("span", {}, `answered in ${Math.round(answer.tookMs)} ms by `, h("span", { class: "mono" }, answer.revision)),
      answer.atLimit ? h("span", {}, "as many objects as the limit (maxDetections of output or a stage): there may be more") : null,
      answer.strange ? h("span", {}, `${answer.strange.flagged ? "unlike" : "like"} the images that the model was made for (${answer.strange.score.toFixed(2)} of ${answer.strange.threshold.toFixed(2)})`) : null);
    const scrolled = parts.querySelector(".objects")?.scrollTop ?? 0;
    const nothing = isPromptable() && !answer.objects.length;
    fill(parts, isPromptable() ? prompts.controls() : null, nothing ? null : legend(answer), nothing || answer.kind === "semantic" ? null : objects(answer), pinned(answer), nothing ? null : downloads(answer));
    parts.querySelector(".objects")?.scrollTo(0, scrolled);
  }

  function drawView() {
    const { answer } = state;
    const scores = answer.objects.some((object) => object.score !== null) && answer.kind !== "semantic" && !isPromptable();
    fill(view, h("h2", {}, "View"),
      scores ? slider("Score from", "score", state.lowest, Math.min(state.least, 0.99), (value) => { state.lowest = value; changed(); clearTimeout(callsTimer); callsTimer = setTimeout(loadCalls, 250); }) : null,
      slider("Opacity", "opacity", settings.opacity, 0, (value) => { settings.opacity = value; paint(); }),
      answer.kind === "semantic" ? null : h("label", { class: "row" },
        h("input", { type: "checkbox", checked: settings.byClass, "data-key": "byclass", onchange: (event) => { settings.byClass = event.target.checked; changed(); } }), "Colour by class"));
  }

  function slider(title, key, value, min, use) {
    const output = h("output", { for: `slider-${key}` }, value.toFixed(2));
    return h("div", { class: "slider" },
      h("div", { class: "row spread" }, h("label", { for: `slider-${key}` }, title), output),
      h("input", { id: `slider-${key}`, type: "range", min, max: 1, step: 0.01, value, "data-key": key,
        oninput: (event) => { output.textContent = Number(event.target.value).toFixed(2); use(Number(event.target.value)); } }));
  }

  function legend(answer) {
    const visible = shownObjects(answer, state.lowest, new Set());
    const isFixed = (known) => known.background && answer.kind === "semantic";
    const rows = answer.classes.map((known) => {
      const found = answer.objects.filter((object, index) => object.classId === known.id && (visible[index] || isFixed(known)));
      return { known, count: found.length, area: found.reduce((sum, object) => sum + object.area, 0) };
    }).filter((row) => row.count).sort((one, other) => other.area - one.area);
    return h("section", {}, h("h2", {}, "Classes"),
      rows.length ? h("ul", { class: "legend" }, rows.map(({ known, count, area }) => h("li", {}, h("label", {},
        h("input", { type: "checkbox", checked: !isFixed(known) && !state.hidden.has(known.id), disabled: isFixed(known), "data-key": `class-${known.id}`,
          onchange: (event) => { if (event.target.checked) state.hidden.delete(known.id); else state.hidden.add(known.id); state.under = -1; changed(); } }),
        swatch(isFixed(known) ? "transparent" : known.colour), h("span", { class: "name" }, known.name),
        h("span", { class: "soft" }, answer.kind === "semantic" ? percent(area / (answer.width * answer.height)) : String(count)))))) : h("p", { class: "soft" }, "Nothing was found."));
  }

  function objects(answer) {
    const colours = coloursOf(answer, settings.byClass);
    const rows = answer.objects.map((object, index) => [object, index]).filter(([, index]) => state.shown[index]);
    const brighten = (index) => () => { if (state.under !== index) { state.under = index; paint(); } };
    return h("section", {}, h("h2", {}, "Objects"),
      h("ul", { class: "objects" },
        rows.slice(0, LISTED).map(([object, index]) => h("li", {}, h("button", { type: "button", "aria-pressed": String(index === state.pinned), "data-key": `object-${index}`,
          onmouseenter: brighten(index), onmouseleave: brighten(-1), onfocus: brighten(index), onclick: () => pin(index) },
        swatch(colours[index]), h("span", { class: "name" }, `${object.class} ${object.number}`),
        h("span", {}, object.score === null ? "" : object.score.toFixed(2)),
        h("span", { class: "soft" }, pixels(object.area))))),
        rows.length > LISTED ? h("li", { class: "soft" }, `and ${rows.length - LISTED} more`) : null,
        rows.length ? null : h("li", { class: "soft" }, "None at this score.")));
  }

  function pin(index) {
    state.pinned = state.pinned === index ? -1 : index;
    changed();
  }

  function pinned(answer) {
    const object = answer.objects[state.pinned];
    if (!object) return null;
    const rows = [["Class", `${object.class} (${object.classId})`], ["Score", object.score === null ? "none" : object.score.toFixed(4)],
      ["Area", `${pixels(object.area)}, ${percent(object.area / (answer.width * answer.height))}`]];
    if (object.box) rows.push(["Box", object.box.map((side) => side.toFixed(1)).join(", ")]);
    if (object.points) rows.push(["Keypoints", `${object.points.filter((point) => point[2] > 0).length} of ${object.points.length}`]);
    return h("section", { class: "pinned" },
      h("div", { class: "row spread" }, h("h2", {}, "Pinned"), h("button", { type: "button", class: "quiet", onclick: () => pin(state.pinned) }, "Unpin")),
      h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
  }

  function downloads(answer) {
    const panoptic = answer.kind === "panoptic" ? [["coco-panoptic", "COCO panoptic"], ["coco-panoptic-png", "Panoptic PNG"]] : [];
    return h("section", {}, h("h2", {}, "Download what is shown"),
      h("div", { class: "row" }, h("button", { type: "button", onclick: savePicture, "data-key": "as-png" }, "PNG"),
        [...FORMATS, ...panoptic].map(([format, title]) => h("button", { type: "button", "data-key": `as-${format}`, onclick: () => saveAnswer(answer, format) }, title))));
  }

  async function saveAnswer(answer, format) {
    const given = { name: source.name, min_score: state.lowest, hidden: [...state.hidden].join(",") };
    try {
      save(...await getFile(`/api/answers/${answer.id}/${format}`, given));
    } catch (error) {
      notice(error.message);
    }
  }

  /** Draw the picture again in the image's own size, and save it. */
  async function savePicture() {
    const { answer } = state;
    const canvas = h("canvas", { width: answer.width, height: answer.height });
    const overlay = h("canvas");
    canvas.getContext("2d").drawImage(source.bitmap, 0, 0, answer.width, answer.height);
    new Layers(answer, answer.width, answer.height).paint(overlay, { shown: state.shown, colours: coloursOf(answer, settings.byClass), opacity: settings.opacity });
    canvas.getContext("2d").drawImage(overlay, 0, 0);
    const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
    if (!blob) { notice("the browser has not enough memory for a picture of this size"); return; }
    save(blob, `${source.name.replace(/\.[^.]*$/, "")}-overlay.png`);
  }

  async function loadCalls() {
    const { answer } = state;
    if (!answer) return;
    const score = answer.kind !== "semantic" && state.lowest > state.least ? state.lowest : null;
    try {
      state.calls = (await get("/api/calls", { model: answer.model, name: source.name, score_threshold: score, ...(isPromptable() ? prompts.parameters : {}) })).calls;
    } catch (error) {
      state.calls = [{ title: "Call", text: `# ${error.message}` }];
    }
    drawCalls();
  }

  function drawCalls() {
    const call = state.calls[state.tab] ?? state.calls[0];
    const select = (index) => {
      state.tab = (index + state.calls.length) % state.calls.length;
      drawCalls();
      callsCard.querySelector(`[data-key="call-${state.tab}"]`).focus();
    };
    fill(callsCard, h("section", { class: "calls" }, h("h2", {}, "The call that gives this"),
      h("div", { class: "tabs", role: "tablist", "aria-label": "Languages" }, state.calls.map((each, index) =>
        h("button", { type: "button", role: "tab", id: `call-${index}`, "data-key": `call-${index}`, "aria-selected": String(each === call), "aria-controls": "call", tabindex: each === call ? 0 : -1,
          onclick: () => select(index), onkeydown: (event) => { const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]; if (step) select(index + step); } }, each.title))),
      h("div", { class: "code", id: "call", role: "tabpanel", "aria-labelledby": `call-${state.calls.indexOf(call)}` },
        h("pre", { tabindex: 0 }, call.text), copyButton(call.text))));
  }

  /** Return the object under the pointer, or -1. */
  function under(event) {
    const area = top.getBoundingClientRect();
    const along = (at, size, most) => Math.floor((at * most) / size);
    return state.layers.at(along(event.clientX - area.left, area.width, top.width), along(event.clientY - area.top, area.height, top.height), state.shown);
  }

  function hover(index, event) {
    if (index !== state.under) { state.under = index; paint(); }
    const object = state.answer?.objects[index];
    tip.hidden = !object;
    if (!object) return;
    fill(tip, h("strong", {}, object.class), `${object.score === null ? "" : `, ${object.score.toFixed(3)}`}, ${pixels(object.area)}`);
    const area = stage.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX - area.left + 14, area.width - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY - area.top + 14, area.height - tip.offsetHeight - 8))}px`;
  }

  top.addEventListener("pointermove", (event) => { if (state.layers && !prompts.drag) hover(under(event), event); });
  top.addEventListener("pointerleave", (event) => hover(-1, event));
  top.addEventListener("click", (event) => {
    if (isPromptable()) return;
    const index = state.layers ? under(event) : -1;
    if (index >= 0 || state.pinned >= 0) pin(index >= 0 ? index : state.pinned);
  });
  top.addEventListener("keydown", (event) => {
    const order = state.shown.map((is, index) => (is ? index : -1)).filter((index) => index >= 0);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !order.length || isPromptable() || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    state.pinned = order[(Math.max(order.indexOf(state.pinned), step > 0 ? -1 : 0) + step + order.length) % order.length];
    changed();
  });

  const resized = new ResizeObserver(() => { if (state.layers) { rebuild(); paint(); } });
  resized.observe(stage);
  source.listeners.add(segment);
  draw();
  const [end] = watch("/api/models", (seen) => {
    const chosen = seen.models.find((model) => model.name === state.model) ?? seen.models.find((model) => model.state.serves) ?? seen.models[0];
    const isNew = state.model !== chosen?.name;
    Object.assign(state, { seen, model: chosen?.name ?? "", error: "" });
    if (chosen && !state.busy && (isNew || !state.answer)) segment();
    else draw();
  }, (message) => { state.error = message; draw(); });
  return () => { over = true; end(); request?.abort(); resized.disconnect(); source.listeners.delete(segment); clearTimeout(callsTimer); };
}
