// The frame around the pages: the address after # says which one is shown.

import { watchPlatform } from "./banner.js";
import { compare } from "./compare.js";
import { history } from "./history.js";
import { models } from "./models.js";
import { playground } from "./playground.js";
import { rollouts } from "./rollouts.js";
import { samples } from "./samples.js";

const PAGES = { play: [playground, "Playground"], compare: [compare, "Compare"], models: [models, "Models"], rollouts: [rollouts, "Rollouts"], history: [history, "History"], samples: [samples, "Samples"] };
const main = document.getElementById("main");
let leave = () => {};
let shown = "";

function show() {
  const [name, query] = location.hash.replace(/^#\//, "").split("?");
  const page = PAGES[name] ? name : "play";
  if (page === shown) return;
  leave();
  const moved = shown !== "";
  shown = page;
  const [open, title] = PAGES[page];
  document.title = `${title} · segserve`;
  for (const link of document.querySelectorAll(".bar nav a")) {
    link.ariaCurrent = link.getAttribute("href") === `#/${page}` ? "page" : null;
  }
  main.replaceChildren();
  leave = open(main, new URLSearchParams(query), (given) => window.history.replaceState(null, "", `#/${page}?${new URLSearchParams(given)}`)) ?? (() => {});
  if (moved) { main.focus({ preventScroll: true }); window.scrollTo(0, 0); }
}

window.addEventListener("hashchange", show);
watchPlatform();
show();
