// What is wrong with the platform as a whole, on every page: a banner that comes within a second or two and goes by itself.

import { get } from "./api.js";
import { copyButton, fill, h, prose } from "./dom.js";
import { limits } from "./source.js";

const EVERY_MS = 1000;
let shown = "";

function show(text, command) {
  if (text + command === shown) return;  // screen readers say it once
  shown = text + command;
  fill(document.getElementById("banner"), text ? h("p", { role: "alert" }, prose(text), command ? [" ", h("code", {}, command), copyButton(command)] : null) : null);
}

async function look() {
  const place = document.getElementById("place");
  try {
    const platform = await get("/api/platform");
    limits.body = platform.bodyLimit;
    place.textContent = [platform.place, platform.url.replace(/^https?:\/\//, "")].filter(Boolean).join(" · ");
    show(platform.gone?.text ?? "", platform.gone?.command ?? "");
  } catch (error) {
    place.textContent = error.text ?? "";
    show(error.gone ? error.message : "", "");
  }
}

export function watchPlatform() {
  let [timer, busy] = [0, false];
  const again = async () => {
    clearTimeout(timer);
    if (busy) return;
    busy = true;
    if (!document.hidden) await look();
    busy = false;
    timer = setTimeout(again, EVERY_MS);
  };
  document.addEventListener("visibilitychange", again);
  document.addEventListener("gone", () => { if (!shown) again(); });
  again();
}
