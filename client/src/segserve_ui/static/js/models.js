// The models as they do now: a table that refreshes by itself.

import { alert, empty, fill, h, prose, tag, watch } from "./dom.js";

const DRIFT = { True: "Drifting", False: "No drift", Unknown: "Drift not known yet" };

export function models(main) {
  const opened = new Set();
  const problem = h("div", {});
  const servers = h("div", {});
  const table = h("div", { class: "card" });
  main.replaceChildren(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Models"), h("p", {}, "What is served, and how it is doing. Figures cover the last few seconds and refresh automatically."))),
    problem, servers, table);
  let seen = null;

  function draw() {
    fill(problem, seen.notes.map((note) => h("p", { class: "note" }, prose(note))));
    fill(servers, seen.servers ? all(seen.servers) : null);
    fill(table, seen.models.length ? h("table", { class: "wide" },
      h("caption", { class: "hidden" }, "Models"),
      h("thead", {}, h("tr", {}, ["Model", "State", "Revisions"].map((name) => h("th", { scope: "col" }, name)),
        ["Requests", "p50", "p95", "Errors", "In flight"].map((name) => h("th", { scope: "col", class: "right" }, name)),
        h("th", { scope: "col" }, h("span", { class: "hidden" }, "Details")))),
      h("tbody", {}, seen.models.map((model) => [row(model), opened.has(model.name) ? details(model) : null])))
      : noModel());
  }

  function row(model) {
    const open = opened.has(model.name);
    const activity = model.activity;
    return h("tr", {},
      h("td", { class: "full" }, h("a", { href: `#/play?model=${encodeURIComponent(model.name)}`, "data-key": `name-${model.name}` }, h("strong", {}, model.name)),
        h("div", { class: "soft" }, `${model.family || "cascade"}, ${model.classes} ${model.classes === 1 ? "class" : "classes"}, pool ${model.pool}${model.device ? `, ${model.device.toUpperCase().replace(",", " and ")}` : ""}`)),
      h("td", { "data-label": "State" }, tag(model.state.tone, model.state.word), model.state.tone === "good" ? null : h("div", { class: "soft" }, model.state.text),
        model.drift ? h("div", {}, tag(model.drift.tone, DRIFT[model.drift.status]), model.drift.status === "True" ? h("div", { class: "soft" }, model.drift.text) : null) : null,
        model.slo ? h("div", { class: "soft" }, `SLO ${model.slo}`) : null),
      h("td", { "data-label": "Revisions" }, h("ul", { class: "revisions" }, model.revisions.map((each) => h("li", {},
        h("span", {}, `${each.weight} %`), h("span", { class: "mono" }, each.revision),
        h("span", { class: "soft" }, each.role + (each.failed ? ", failed" : "")))),
      model.revisions.length ? null : h("li", { class: "soft" }, "none yet"))),
      h("td", { class: "right", "data-label": "Requests" }, activity ? `${rate(activity.requestsPerSecond)}/s` : "–", spark(model.rates)),
      h("td", { class: "right", "data-label": "p50" }, milliseconds(activity?.p50Milliseconds)),
      h("td", { class: "right", "data-label": "p95" }, milliseconds(activity?.p95Milliseconds)),
      h("td", { class: "right", "data-label": "Errors" }, activity?.failedRatio == null ? "–" : `${(100 * activity.failedRatio).toFixed(1)} %`),
      h("td", { class: "right", "data-label": "In flight" }, activity?.active ?? "–"),
      h("td", { class: "right full" }, h("button", { type: "button", class: "quiet", "aria-expanded": String(open), "data-key": `more-${model.name}`,
        onclick: () => { if (open) opened.delete(model.name); else opened.add(model.name); draw(); } }, open ? "Less" : "Details", h("span", { class: "hidden" }, ` of ${model.name}`))));
  }

  function details(model) {
    const failed = model.revisions.filter((each) => each.text).map((each) => [h("dt", {}, tag(each.failed ? "bad" : "moving", each.role)), h("dd", {}, each.text)]);
    return h("tr", { class: "more" }, h("td", { colspan: 9 }, h("dl", { class: "conditions" }, failed, model.conditions.map((each) => [
      h("dt", {}, tag(each.tone, each.type)), h("dd", {}, each.text, h("span", { class: "soft" }, ` (${each.status}, for ${each.age})`))]))));
  }

  return watch("/api/overview", (found) => { seen = found; draw(); }, (message) => fill(problem, alert(message)))[0];
}

/** What stands where no model is served. */
export const noModel = () => empty("No model yet", "`segserve init` writes the resource of a model from a network and some photographs, `segserve up` serves it on this machine, and `segserve apply` on a cluster.",
  "segserve init photos/ network.onnx -o found\nsegserve up -f found/model.yaml", ["tutorial.md", "Tutorial"]);

function all(servers) {
  const facts = [["CPU", servers.cpuCores === null ? "–" : `${servers.cpuCores.toFixed(2)} cores`], ["Memory", bytes(servers.memoryBytes)],
    ["Queue", milliseconds(servers.queueMilliseconds)], ["Device", servers.gpuRatio === null ? "CPU" : `GPU, ${(100 * servers.gpuRatio).toFixed(0)} % busy`]];
  return h("div", { class: "card pad" }, h("h2", {}, "All servers"),
    h("dl", { class: "servers" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

/** Draw the latest rates; less than one request per second is near the ground, so that an idle model has a flat line. */
function spark(rates) {
  const most = Math.max(...rates, 1);
  if (rates.length < 5) return null;
  const points = rates.map((value, index) => `${((100 * index) / (rates.length - 1)).toFixed(1)},${(28 - (26 * value) / most).toFixed(1)}`);
  return h("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, h("path", { svg: true, d: `M${points.join("L")}` }));
}

const rate = (value) => value.toFixed(value >= 10 ? 0 : 1);
export const milliseconds = (value) => (value == null ? "–" : value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${rate(value)} ms`);
const bytes = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${(value / 1e6).toFixed(0)} MB`);
