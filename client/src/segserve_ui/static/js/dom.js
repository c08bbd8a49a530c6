// Elements from data. Text is only ever set as text, so that names of models and classes cannot be markup.

import { get, getBlob } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";

/** Return an element; `on...` are listeners, null and false are left out, children may be nested arrays. */
export function h(tag, given = {}, ...children) {
  const element = tag === "svg" || given.svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "svg" || value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    getBlob(target.dataset.path).then((blob) => {
      target.onload = () => URL.revokeObjectURL(target.src);
      target.src = URL.createObjectURL(blob);
    }, () => {});
  }
}, { rootMargin: "50%" });

/** Return an image of a path, read once it is near what is shown: the browser would read it without the token. */
export function picture(path) {
  const image = h("img", { alt: "", "data-path": path });
  near.observe(image);
  return image;
}

/** Save a file where the browser saves downloads. */
export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  h("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/** Replace the children of an element, and keep the focus where an element of the same `data-key` has it. */
export function fill(parent, ...children) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  parent.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (key !== undefined) parent.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

let forgotten;

/** Return a button that copies a text. */
export const copyButton = (text) => h("button", { type: "button", "data-key": "copy", onclick: async () => {
  try {
    await navigator.clipboard.writeText(text);
    notice("Copied");
  } catch {
    notice("the browser does not let this page copy: select the text instead");
  }
} }, "Copy");

/** Return a text as nodes, in which `commands` stand as code. */
export const prose = (text) => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

/** Show a text for a few seconds, also to screen readers. */
export function notice(text) {
  const place = document.getElementById("notice");
  place.replaceChildren(h("p", {}, prose(text)));
  clearTimeout(forgotten);
  forgotten = setTimeout(() => place.replaceChildren(), 6000);
}

/** Return an error's text, which screen readers say at once; null for none. */
export const alert = (text) => (text ? h("p", { class: "problem", role: "alert" }, prose(text)) : null);

/** Return what stands where nothing is yet: a heading, a text with `commands`, an example, and a page of the docs. */
export const empty = (title, text, example, [page, about]) => h("div", { class: "empty" }, h("h2", { class: "title" }, title), h("p", {}, prose(text)),
  example ? h("pre", { class: "fold", tabindex: 0 }, example) : null,
  h("p", {}, h("a", { href: `/docs/${page}`, target: "_blank", rel: "noreferrer" }, about)));
export const tag = (tone, text) => h("span", { class: `tag ${tone}` }, text);

/** Return a square of a colour. A policy without inline styles allows those that scripts set. */
export function swatch(colour) {
  const element = h("span", { class: "swatch" });
  element.style.background = colour;
  return element;
}

/** Return a bar for a share from 0 to 1. */
export function meter(share, tone, label) {
  return h("div", { class: `meter ${tone}`, role: "meter", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * share), "aria-label": label },
    h("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" },
      h("rect", { svg: true, width: 100 * share, height: 1 })));
}

/**
 * Read a path now and again every 2 s while the page is visible: `use` what changed, and `fail` with an error's text.
 * Returns what ends that, and what reads at once.
 */
export function watch(path, use, fail) {
  let [timer, over, last] = [0, false, ""];
  const look = async () => {
    try {
      const found = await get(path);
      const text = JSON.stringify(found);
      if (text !== last && !over) use(found);
      last = text;
    } catch (error) {
      last = "";
      if (!over) fail(error.text ?? error.message);
    }
  };
  const again = async () => {
    clearTimeout(timer);
    if (!document.hidden) await look();
    if (!over) timer = setTimeout(again, 2000);
  };
  const seen = () => { if (!document.hidden) again(); };
  document.addEventListener("visibilitychange", seen);
  again();
  return [() => { over = true; clearTimeout(timer); document.removeEventListener("visibilitychange", seen); }, look];
}
