// The gallery of the samples that a model keeps: filtered by class and by why each was kept.

import { get } from "./api.js";
import { alert, empty, fill, h, picture, tag } from "./dom.js";
import { takeFrom } from "./source.js";

const REASONS = { uncertain: "uncertain", disagree: "disagreed", error: "failed", empty: "nothing found", drift: "drift", share: "by chance" };

export function samples(main, given, go) {
  const chosen = { model: given.get("model") ?? "", reason: given.get("reason") ?? "", class: given.get("class") ?? "" };
  const controls = h("div", { class: "row" });
  const problem = h("div", {});
  const count = h("p", { class: "soft", role: "status" });
  const gallery = h("div", { class: "gallery" });
  let over = false;
  let latest = 0;

  main.replaceChildren(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Samples"), h("p", {}, "Images of requests that models kept, and why.")), controls),
    problem, count, gallery);

  async function look() {
    const mine = ++latest;
    let seen;
    try {
      seen = await get("/api/samples", chosen);
    } catch (error) {
      if (mine === latest && !over) fill(problem, alert(error.text ?? error.message));
      return;
    }
    if (mine !== latest || over) return;
    chosen.model = seen.model ?? "";
    fill(problem);
    drawControls(seen);
    count.textContent = seen.model ? `${seen.samples.length} of ${seen.total} samples` : "";
    fill(gallery, seen.models.length ? null : h("div", { class: "card" }, empty("No samples", seen.note, seen.example, ["collect-samples.md", "Collect images from requests"])),
      seen.samples.map(card));
  }

  function choose(name, title, options) {
    return h("label", { class: "field" }, title, h("select", { "data-key": name, onchange: (event) => {
      chosen[name] = event.target.value;
      if (name === "model") Object.assign(chosen, { reason: "", class: "" });
      go(Object.fromEntries(Object.entries(chosen).filter(([, value]) => value)));
      look();
    } }, options.map(([value, text]) => h("option", { value, selected: value === chosen[name] }, text))));
  }

  function drawControls(seen) {
    if (!seen.models.length) { fill(controls); return; }
    fill(controls,
      choose("model", "Model", seen.models.map((name) => [name, name])),
      choose("reason", "Kept because", [["", "Any reason"], ...Object.entries(seen.reasons).map(([reason, number]) => [reason, `${REASONS[reason] ?? reason} (${number})`])]),
      choose("class", "With", [["", "Any class"], ...Object.entries(seen.classes).map(([name, number]) => [name, `${name} (${number})`])]));
  }

  function card(sample) {
    const found = Object.entries(sample.classes).map(([name, number]) => `${number} ${name}`).join(", ") || "nothing";
    const path = `/api/samples/${encodeURIComponent(sample.model)}/${encodeURIComponent(sample.key)}`;
    const numbers = [["uncertainty", sample.uncertainty], ["disagreement", sample.disagreement]].filter(([, value]) => value !== null);
    return h("article", { class: "card sample", "data-sample": sample.key },
      h("button", { type: "button", "data-key": `sample-${sample.key}`, "aria-label": `Open the sample of ${sample.capturedAt} in the playground: ${found}`, onclick: () => open(sample, path) },
        picture(`${path}?size=small`)),
      h("div", { class: "about" },
        h("div", { class: "row" }, sample.reasons.map((reason) => tag(reason === "error" ? "bad" : reason === "share" ? "quiet" : "moving", REASONS[reason] ?? reason))),
        h("strong", {}, found),
        h("div", { class: "soft" }, [new Date(sample.capturedAt).toLocaleString(), sample.slice, `${sample.width} × ${sample.height}`].filter(Boolean).join(", ")),
        h("div", { class: "soft" }, numbers.map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", "))));
  }

  async function open(sample, path) {
    if (await takeFrom(path, `${sample.key}.jpg`)) location.hash = `#/play?model=${encodeURIComponent(sample.model)}`;
  }

  look();
  return () => { over = true; };
}
