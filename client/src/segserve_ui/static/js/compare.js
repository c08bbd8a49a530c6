// Two models on one image: under a swipe, side by side, or as their difference, and how much they agree.

import { post } from "./api.js";
import { alert, fill, h, meter, swatch, watch } from "./dom.js";
import { Layers, coloursOf, displaySize, fitted, shownObjects } from "./overlay.js";
import { chooser, droppable, examplesOf, forget, invitation, photograph, refused, source, stepper } from "./source.js";
import { summary } from "./summary.js";
import { scrubber } from "./video.js";

const ONLY_FIRST = [240, 140, 0];
const ONLY_SECOND = [40, 130, 240];
const OTHER_CLASS = [220, 40, 90];

export function compare(main, given, go) {
  const state = { seen: null, first: given.get("first") ?? "", second: given.get("second") ?? "", image: null, answer: null, layers: [], view: "swipe", swipe: 50, opacity: 0.5, busy: false, error: "" };
  let request = null;
  let over = false;
  const controls = h("div", { class: "row" });
  const problem = h("div", {});
  const stage = h("div", { class: "stage" });
  const caption = h("div", { class: "caption", role: "status" });
  const panel = h("aside", { class: "panel card", "aria-label": "Agreement" });
  droppable(stage);
  main.replaceChildren(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Compare"), h("p", {}, "Two models on the same image. Agreement is not quality: check which one is right.")), controls),
    problem, refused, h("div", { class: "play" }, h("div", { class: "card" }, stage, scrubber, caption), panel));

  function select(title, key) {
    return h("label", { class: "field" }, title, h("select", { "data-key": key, onchange: (event) => { state[key] = event.target.value; go({ first: state.first, second: state.second }); compareBoth(); } },
      (state.seen?.models ?? []).map((model) => h("option", { value: model.name, selected: model.name === state[key] }, model.name))));
  }

  async function compareBoth() {
    request?.abort();
    forget(state, { answer: null, layers: [] });
    if (!source.file || !state.first || !state.second) { request = null; draw(); return; }
    const mine = new AbortController();
    request = mine;
    state.busy = true;
    draw();
    try {
      const found = await (await post("/api/compare", { first: state.first, second: state.second }, source.file, mine.signal)).json();
      if (request !== mine || over) return;
      Object.assign(state, { answer: found, error: "", layers: [] });
    } catch (error) {
      if (error.name === "AbortError" || request !== mine || over) return;
      Object.assign(state, { answer: null, layers: [], error: error.text ?? error.message });
    }
    state.busy = false;
    draw();
  }

  function draw() {
    if (over) return;
    fill(controls, select("First", "first"), select("Second", "second"), source.file ? [stepper(), chooser("Other files")] : null);
    fill(problem, state.error ? alert(state.error) : null);
    if (!state.answer) {
      const text = state.busy ? "Both models are at work." : source.file ? "There is no answer." : "Looking for models";
      fill(stage, !source.file && state.seen ? invitation(examplesOf(state.seen, state.first)) : h("p", { class: "soft" }, text));
      fill(caption);
      fill(panel, h("section", {}, h("h2", {}, "Agreement"), h("p", { class: "soft" }, "How much both agree, over all and by class, appears here.")));
      return;
    }
    pictures();
    describe();
  }

  function overlay(index) {
    const answer = state.answer.answers[index];
    const shown = shownObjects(answer, 0, new Set());
    const canvas = h("canvas", { role: "img", "aria-label": `${answer.model} found ${summary(answer, shown) || "nothing"}` });
    state.layers[index].paint(canvas, { shown, colours: coloursOf(answer, true), opacity: state.opacity });
    return canvas;
  }

  function pictures() {
    const room = stage.clientWidth || 800;
    const [width, height] = displaySize(state.answer.answers[0], Math.max(room * (window.devicePixelRatio || 1), 200));
    if (state.layers[0]?.width !== width) state.layers = state.answer.answers.map((answer) => new Layers(answer, width, height));
    const css = fitted(state.answer.answers[0], room);
    const sized = (canvas) => { canvas.style.width = `${css}px`; return canvas; };
    if (state.view === "difference") {
      fill(stage, sized(photograph(h("canvas", { "aria-hidden": "true" }), width, height)), sized(difference()));
      return;
    }
    const overlays = [overlay(0), overlay(1)].map(sized);
    const divider = h("div", { class: "divider", "aria-hidden": "true" });
    fill(stage, sized(photograph(h("canvas", { "aria-hidden": "true" }), width, height)), overlays, divider, names());
    const clip = () => {
      divider.style.left = `${(stage.clientWidth - css) / 2 + (css * state.swipe) / 100 - 1}px`;
      overlays[0].style.clipPath = `inset(0 ${100 - state.swipe}% 0 0)`;
      overlays[1].style.clipPath = `inset(0 0 0 ${state.swipe}%)`;
    };
    clip();
    state.clip = clip;
    const drag = (event) => {
      if (event.type === "pointermove" && !event.buttons && event.pointerType === "mouse" && !event.shiftKey) return;
      const area = overlays[1].getBoundingClientRect();
      state.swipe = Math.round(Math.min(100, Math.max(0, (100 * (event.clientX - area.left)) / area.width)));
      clip();
      const input = panel.querySelector("#swipe");
      if (input) input.value = state.swipe;
    };
    for (const kind of ["pointerdown", "pointermove"]) overlays[1].addEventListener(kind, drag);
    overlays[1].classList.add("top", "swipe");
  }

  function names() {
    return state.answer.answers.map((answer, index) => h("span", { class: `side ${index ? "right" : "left"}` }, answer.model));
  }

  function difference() {
    const [one, other] = state.layers;
    const numbers = new Map();
    const numberOf = (object) => { if (!numbers.has(object.class)) numbers.set(object.class, numbers.size + 1); return numbers.get(object.class); };
    const [first, second] = [one, other].map((layers) => layers.classes(shownObjects(layers.answer, 0, new Set()), numberOf));
    const canvas = h("canvas", { width: one.width, height: one.height, role: "img", "aria-label": "where both answers differ" });
    const context = canvas.getContext("2d");
    const picture = context.createImageData(one.width, one.height);
    let differ = 0;
    for (let at = 0; at < first.length; at++) {
      if (first[at] === second[at]) continue;
      differ += 1;
      const colour = !second[at] ? ONLY_FIRST : !first[at] ? ONLY_SECOND : OTHER_CLASS;
      picture.data.set([...colour, 225], 4 * at);
    }
    state.differ = differ / first.length;
    context.putImageData(picture, 0, 0);
    return canvas;
  }

  function describe() {
    const { answers, agreement } = state.answer;
    fill(caption, answers.map((answer, index) => h("span", {}, h("strong", {}, answer.model), `: ${summary(answer, shownObjects(answer, 0, new Set())) || "nothing"}, ${Math.round(answer.tookMs)} ms`)));
    const views = [["swipe", "Swipe"], ["difference", "Difference"]];
    fill(panel,
      h("section", {}, h("h2", {}, "Agreement"),
        h("p", { class: "big" }, agreement.value.toFixed(3)),
        h("p", { class: "soft" }, "1 means identical: the IoU of masks, with objects weighted by score."),
        h("ul", { class: "agreement stack" }, agreement.classes.slice(0, 40).map((row) => h("li", {}, h("span", {}, row.class), h("span", { class: "right" }, row.agreement.toFixed(3)), meter(row.agreement, "good", `Agreement on ${row.class}`)))),
        agreement.only.some(Boolean) ? h("p", {}, `Only ${answers[0].model}: ${agreement.only[0]} objects. Only ${answers[1].model}: ${agreement.only[1]}.`) : null),
      h("section", {}, h("h2", {}, "View"),
        h("div", { class: "row", role: "radiogroup", "aria-label": "View" }, views.map(([view, title]) => h("label", { class: "row" },
          h("input", { type: "radio", name: "view", checked: state.view === view, "data-key": `view-${view}`, onchange: () => { state.view = view; draw(); } }), title))),
        state.view === "swipe" ? h("div", { class: "slider" }, h("label", { for: "swipe" }, `${answers[0].model} left, ${answers[1].model} right`),
          h("input", { id: "swipe", type: "range", min: 0, max: 100, value: state.swipe, "data-key": "swipe", oninput: (event) => { state.swipe = Number(event.target.value); state.clip(); } })) : null,
        state.view === "difference" ? h("ul", { class: "legend" }, [[ONLY_FIRST, `only ${answers[0].model}`], [ONLY_SECOND, `only ${answers[1].model}`], [OTHER_CLASS, "another class"]].map(([colour, text]) => h("li", { class: "row" }, swatch(`rgb(${colour.join(" ")})`), text)), h("li", { class: "soft" }, `${(100 * state.differ).toFixed(2)} % of the pixels differ.`)) : h("div", { class: "slider" }, h("label", { for: "strength" }, "Opacity"),
          h("input", { id: "strength", type: "range", min: 0, max: 1, step: 0.01, value: state.opacity, "data-key": "strength", oninput: (event) => { state.opacity = Number(event.target.value); pictures(); } }))),
      h("section", {}, h("h2", {}, "On the command line"), h("pre", { class: "fold", tabindex: 0 }, `segserve diff ${answers[0].model} ${answers[1].model} '${source.name.replaceAll("'", "'\\''")}'`)));
  }

  const resized = new ResizeObserver(() => { if (state.answer) pictures(); });
  resized.observe(stage);
  source.listeners.add(compareBoth);
  draw();
  const [end] = watch("/api/models", (seen) => {
    const names = seen.models.filter((model) => model.state.serves).map((model) => model.name);
    const task = (name) => seen.models.find((model) => model.name === name)?.task;
    const partner = (name) => names.find((other) => other !== name && task(other) === task(name));
    const [first, second] = [state.first, state.second];
    if (!names.includes(first)) state.first = names.find((name) => partner(name)) ?? names[0];
    if (!names.includes(second)) state.second = partner(state.first) ?? names.find((name) => name !== state.first) ?? state.first;
    const isNew = state.first !== first || state.second !== second;
    Object.assign(state, { seen, error: names.length < 2 ? "A comparison needs two models that serve." : "" });
    if (names.length > 1 && (isNew || !(state.answer || state.busy))) compareBoth();
    else draw();
  }, (message) => { state.error = message; draw(); });
  return () => { over = true; end(); request?.abort(); resized.disconnect(); source.listeners.delete(compareBoth); };
}
