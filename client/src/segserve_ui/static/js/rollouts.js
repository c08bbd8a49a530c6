// Rollouts: where each stands, the evidence of its gates, its decisions, and what can be done about it.

import { get, post } from "./api.js";
import { alert, empty, fill, h, meter, notice, tag, watch } from "./dom.js";

const VERBS = {
  promote: ["Promote", "The new revision gets all requests now, whatever its gates say.", false],
  pause: ["Pause", "The weight stays as it is; a breach still rolls back.", false],
  resume: ["Resume", "It continues, also after a step that needs approval.", false],
  abort: ["Abort", "The new revision gets no more requests and counts as failed.", true],
  retry: ["Retry", "The failed revision is rolled out again from the start.", false],
  rollback: ["Roll back", "", true],
};

export function rollouts(main) {
  const problem = h("div", {});
  const list = h("div", { class: "stack rollouts" });
  main.replaceChildren(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Rollouts"), h("p", {}, "How a new revision compares with the current one, and what happens next."))),
    problem, list);
  const details = new Set();
  const pairs = new Map();

  function draw(seen) {
    fill(problem);
    for (const each of list.querySelectorAll("details[data-name]")) { if (each.open) details.add(each.dataset.name); else details.delete(each.dataset.name); }
    fill(list, seen.rollouts.map(card), rest(seen));
  }

  /** Read the pairs that differ most when their list is opened; one that stays open is not read again. */
  async function toggled(one, list) {
    const { model, rollout } = one;
    if (!list.open) { pairs.get(rollout)?.remove(); pairs.delete(rollout); return; }
    if (pairs.has(rollout)) return;
    const shown = h("div", { class: "stack" }, h("p", { class: "soft" }, "Drawing the pairs"));
    pairs.set(rollout, shown);
    list.append(shown);
    try {
      const found = await get(`/api/rollouts/${encodeURIComponent(model)}/pairs`);
      fill(shown, h("p", { class: "soft" }, `${found.pairs.length} of ${found.compared} pairs that were compared. Agreement is not quality: check which one is right.`), found.pairs.map(pair));
    } catch (error) {
      fill(shown, h("p", { class: "soft" }, error.message));
    }
  }

  function pair(one, index) {
    const bytes = Uint8Array.from(atob(one.picture), (letter) => letter.charCodeAt(0));
    const [first, ...more] = one.figures;
    return h("figure", { class: "stack" }, h("figcaption", {}, h("strong", {}, capital(first)), more.map((line) => h("div", { class: "soft" }, line))),
      bytes.length ? h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Pair ${index + 1}` }, h("img", { alt: "Image, stable, candidate and difference",
        src: URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" })), onload: (event) => URL.revokeObjectURL(event.target.src) })) : null);
  }

  async function request(model, action, question, text) {
    if (!window.confirm(`${question}\n\n${text}`)) return;
    try {
      notice((await (await post(`/api/rollouts/${encodeURIComponent(model)}/${action}`)).json()).text);
    } catch (error) {
      notice(error.message);
    }
    await look();
  }

  function actions({ model, actions: verbs, revision, stable, previous }) {
    const text = (verb) => (verb === "rollback" ? `${previous}, which is still loaded, gets all requests. ${stable} leaves and counts as failed.` : `${VERBS[verb][1]} It is about ${revision}.`);
    return h("div", { class: "row" }, verbs.filter((verb) => VERBS[verb]).map((verb) =>
      h("button", { type: "button", class: verb === "promote" ? "primary" : VERBS[verb][2] ? "danger" : "", "data-key": `${model}-${verb}`, onclick: () => request(model, verb, `${VERBS[verb][0]} ${model}?`, text(verb)) }, verb === "rollback" ? `Roll back to ${previous}` : VERBS[verb][0])));
  }

  function card(one) {
    return h("article", { class: "card rollout", "aria-label": `Rollout of ${one.model}` },
      h("div", { class: "row spread" },
        h("div", { class: "row" }, h("h2", { class: "title" }, one.model), tag(one.history ? "quiet" : one.tone, one.history ? `Past: ${one.phase}` : one.paused ? `${one.phase}, paused` : one.phase), h("span", { class: "mono soft" }, one.revision)),
        actions(one)),
      h("p", { class: "headline" }, capital(one.headline)),
      one.behind ? h("p", { class: "note" }, "The operator has not processed the newest spec yet.") : null,
      one.steps.length ? h("ol", { class: "steps", "aria-label": "Steps" }, one.steps.map((step) =>
        h("li", { class: step.state.replace(" ", "-"), "aria-current": step.state === "now" ? "step" : null }, h("b", {}, step.name), step.state === "to come" ? step.text || "to come" : [step.state, step.text].filter(Boolean).join(", ")))) : null,
      h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Both revisions now" }, h("table", { class: "compact" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Now"), ["Weight", ...(one.live ? ["Requests", "Errors", "p50", "p95"] : [])].map((name) => h("th", { scope: "col", class: "right" }, name)), h("th", { scope: "col" }, "Revision"))),
        h("tbody", {}, one.sides.map((side) => h("tr", {}, h("td", {}, side.role), h("td", { class: "right" }, `${side.weight} %`),
          (one.live ? [side.rate, side.broken ? tag("bad", side.errors) : side.errors, side.p50, side.p95] : []).map((figure) => h("td", { class: "right" }, figure)), h("td", { class: "mono" }, side.revision)))))),
      h("div", { class: "columns" },
        one.gates.length ? h("section", { class: "stack" }, h("h3", { class: "small" }, "Gates: the evidence that would roll it back"), h("ul", { class: "gates" }, one.gates.map((each) => gate(each, one)))) : null,
        one.decisions.length ? h("section", { class: "stack" }, h("h3", { class: "small" }, "Decisions, newest first"), h("ol", { class: "decisions" }, one.decisions.map((each) =>
          h("li", { class: each.tone }, h("time", { datetime: each.at, title: each.at }, `${each.ago} ago`),
            h("div", {}, h("strong", {}, `${each.phase}, ${each.weight} %`), h("br"), each.text, each.by ? h("span", { class: "soft" }, ` (${each.by})`) : null))))) : null),
      one.compares ? h("details", { "data-name": `pairs of ${one.rollout}`, open: details.has(`pairs of ${one.rollout}`), ontoggle: (event) => toggled(one, event.target) },
        h("summary", { "data-key": `pairs-${one.rollout}` }, "Images on which they differ most"), pairs.get(one.rollout)) : null,
      one.facts.length ? h("dl", { class: "facts" }, one.facts.map((fact) => [h("dt", {}, fact.name), h("dd", {}, fact.text)])) : null,
      one.earlier.length ? h("details", { "data-name": one.model, open: details.has(one.model) }, h("summary", {}, "Earlier rollouts"), h("ul", {}, one.earlier.map((each) =>
        h("li", {}, h("span", { class: "mono" }, each.revision), ` ${each.phase}`)))) : null);
  }

  function gate(one, rollout) {
    const name = `${rollout.model}/${one.gate}`;
    return h("li", { class: "gate" },
      h("div", { class: "row spread" }, h("strong", {}, one.gate),
        h("div", { class: "row" }, tag(one.tone, one.state), rollout.skippable.includes(one.gate) ? h("button", { type: "button", class: "quiet", "data-key": `skip-${name}`, "aria-label": `Skip ${one.gate}`, 
          onclick: () => request(rollout.model, `skip-gate?gate=${encodeURIComponent(one.gate)}`, `Skip ${one.gate} of ${rollout.model}?`, `It neither blocks ${rollout.revision} nor rolls it back; the other gates go on.`) }, "Skip") : null)),
      one.evidence === null ? null : meter(one.evidence, one.tone, `Evidence of ${one.gate}`),
      h("p", {}, capital(one.text)),
      one.statistics && one.statistics !== one.text ? h("details", { "data-name": name, open: details.has(name) }, h("summary", { class: "soft", "data-key": `statistics-${name}` }, "Statistics"), h("p", { class: "soft" }, one.statistics)) : null);
  }

  const [end, look] = watch("/api/rollouts", draw, (message) => fill(problem, alert(message)));
  return end;
}

function rest(seen) {
  const declared = seen.without.filter((each) => each.declared).map((each) => each.model);
  const others = seen.without.filter((each) => !each.declared).map((each) => each.model);
  return [
    seen.rollouts.length ? null : h("div", { class: "card" }, empty("No rollout yet", "Change a model that has `spec.rollout`, and its steps, evidence and decisions appear here.",
      "spec:\n  rollout:\n    steps: [{weight: 10}, {weight: 50}]", ["roll-out.md", "Roll out a new version"])),
    declared.length ? h("p", { class: "soft" }, `Rolled out at their next change: ${declared.join(", ")}.`) : null,
    others.length ? h("p", { class: "soft" }, `Without spec.rollout, a new revision is promoted as soon as it is ready: ${others.join(", ")}.`) : null,
  ];
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
