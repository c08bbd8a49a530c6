// The last day: requests, errors and latencies of each model, and the rollouts of the past with how they ended.

import { alert, empty, fill, h, prose, tag, watch } from "./dom.js";
import { milliseconds } from "./models.js";

const WIDTH = 960;
const HEIGHT = 120;

export function history(main) {
  const problem = h("div", {});
  const list = h("div", { class: "stack" });
  const opened = new Set();
  main.replaceChildren(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "History"), h("p", {}, "Requests of the last 24 hours, by quarter of an hour, and past rollouts with how they ended."))),
    problem, list);

  function draw(seen) {
    fill(problem);
    for (const each of list.querySelectorAll("details[data-name]")) { if (each.open) opened.add(each.dataset.name); else opened.delete(each.dataset.name); }
    fill(list, requests(seen), past(seen.rollouts));
  }

  function requests(seen) {
    if (seen.models.length) return seen.models.map(card);
    if (seen.example) return h("div", { class: "card" }, empty("No requests to show", seen.note, seen.example, ["look.md", "Look at it in a browser"]));
    if (seen.note) return h("p", { class: "note" }, prose(seen.note));
    return h("div", { class: "card" }, empty("No requests in the last day", "The platform counts requests every minute. Send one, and it appears here a minute later.", "segserve predict MODEL photo.jpg", ["look.md", "Look at it in a browser"]));
  }

  function card({ model, bins, total }) {
    const facts = [["Requests", total.requests.toLocaleString("en")], ["Failed", `${total.failed.toLocaleString("en")}${total.requests ? ` (${((100 * total.failed) / total.requests).toFixed(1)} %)` : ""}`],
      ["p50", milliseconds(total.p50)], ["p95", milliseconds(total.p95)]];
    const busy = bins.filter((bin) => bin.requests);
    return h("section", { class: "card pad stack", "aria-label": `Last day of ${model}` }, h("h2", { class: "title" }, model),
      h("dl", { class: "servers" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      h("div", { class: "columns" },
        chart("Requests and failed requests", bins, (bin) => bin.requests, (most) => most.toLocaleString("en"), [["bars", (bin) => bin.requests], ["bars bad", (bin) => bin.failed]]),
        chart("Latency: p95, and p50 below it", bins, (bin) => bin.p95 ?? 0, milliseconds, [["line soft", (bin) => bin.p95], ["line", (bin) => bin.p50]])),
      h("details", { "data-name": model, open: opened.has(model) }, h("summary", { "data-key": `table-${model}` }, "Table"),
        h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Table of ${model}` }, h("table", { class: "compact" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "From"), ["Requests", "Failed", "p50", "p95"].map((name) => h("th", { scope: "col", class: "right" }, name)))),
          h("tbody", {}, busy.reverse().map((bin) => h("tr", {}, h("td", {}, local(bin.at)), [bin.requests, bin.failed, milliseconds(bin.p50), milliseconds(bin.p95)].map((value) => h("td", { class: "right" }, String(value))))))))));
  }

  return watch("/api/history", draw, (message) => fill(problem, alert(message)))[0];
}

/** Draw bars and lines over the day, all of one scale; the table below has the numbers. */
function chart(title, bins, height, words, layers) {
  const most = Math.max(...bins.map(height), 0);
  const step = WIDTH / bins.length;
  const y = (value) => (HEIGHT - (most ? (HEIGHT * value) / most : 0)).toFixed(1);
  const marks = layers.map(([kind, value]) => {
    const at = bins.map((bin, index) => [index * step, value(bin)]);
    if (kind.startsWith("bars")) return at.filter(([, each]) => each).map(([x, each]) => h("rect", { svg: true, class: kind, x: x.toFixed(1), y: y(each), width: (step * 0.8).toFixed(1), height: Math.max(HEIGHT - y(each), 1) }));
    const parts = at.map(([x, each], index) => (each == null ? "" : `${at[index - 1]?.[1] == null ? "M" : "L"}${x.toFixed(1)},${y(each)}h${step.toFixed(1)}`));
    return h("path", { svg: true, class: kind, d: parts.join("") || "M0,0" });
  });
  return h("figure", { class: "chart" }, h("figcaption", {}, title, h("span", { class: "soft" }, most ? `, at most ${words(most)}` : ", none")),
    h("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, marks),
    h("div", { class: "row spread soft", "aria-hidden": "true" }, h("span", {}, local(bins[0].at)), h("span", {}, "now")));
}

function past(rollouts) {
  if (!rollouts.length) return h("div", { class: "card" }, empty("No rollout yet", "Rollouts of models with `spec.rollout` are listed here, the last ten of each model.", "segserve rollout status MODEL", ["roll-out.md", "Roll out a new version"]));
  return h("section", { class: "card pad stack", "aria-label": "Past rollouts" }, h("h2", { class: "title" }, "Rollouts"),
    h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table of rollouts" }, h("table", { class: "compact" },
      h("thead", {}, h("tr", {}, ["Began", "Model", "Revision", "Outcome", "Took", "Why"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rollouts.map((each) => h("tr", {}, h("td", {}, local(each.startedAt)), h("td", {}, each.model), h("td", { class: "mono" }, each.revision), h("td", {}, tag(each.tone, each.phase)), h("td", {}, each.took), h("td", {}, each.text)))))));
}

const local = (time) => new Date(time).toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit" });
