// JSON to look into: members are made when they are opened, a hundred at a time, and long text is cut until it is asked for.
import { copyButton, save } from "./clipboard.js";
import { el } from "./dom.js";
import { shown } from "./names.js";

const STEP = 100; // members that are made at once
const CUT = 2000; // characters of a string that are shown at once
const LARGE = 256 * 1024; // characters beyond which text is only saved, not shown
const NUMBER = "\0"; // the one member of the object that stands for a number

/** The number that a value of `parseMarked` stands for, as it was written; undefined: it is none. */
const numberOf = (value) => (value !== null && typeof value === "object" ? value[NUMBER] : undefined);

/** One value: text for a scalar, a part to open for what has members. */
export function jsonTree(name, value) {
  const number = numberOf(value);
  if (value === null || typeof value !== "object" || number !== undefined) {
    const line = el("div", { class: "json" }, ...title(name));
    line.append(number !== undefined ? el("span", { class: "json-number" }, number) : typeof value === "string" ? string(value) : el("span", {}, String(value)));
    return line;
  }
  const isList = Array.isArray(value);
  const names = isList ? null : Object.keys(value);
  const size = isList ? value.length : names.length;
  if (!size) return el("div", { class: "json" }, ...title(name), isList ? "[]" : "{}");
  const inside = el("div", { class: "json-inside" });
  const made = el("details", { class: "json" }, el("summary", {}, ...title(name), el("span", { class: "sub" }, isList ? `[${size}]` : `{${size}}`)), inside);
  const add = (from) => {
    const to = Math.min(size, from + STEP);
    for (let at = from; at < to; at++) inside.append(jsonTree(isList ? String(at) : names[at], value[isList ? at : names[at]]));
    if (to === size) return;
    const more = el("button", { type: "button", class: "small" }, `Show ${Math.min(STEP, size - to)} more of ${size - to}`);
    more.addEventListener("click", () => {
      more.remove();
      add(to);
    });
    inside.append(more);
  };
  made.addEventListener("toggle", () => made.open && !inside.firstChild && add(0));
  return made;
}

const title = (name) => (name === null ? [] : [el("bdi", { class: "json-name" }, shown(name)), ": "]);

function string(text) {
  const body = el("span", { class: "json-text", dir: "auto" }, shownText(text.slice(0, CUT)));
  if (text.length <= CUT) return body;
  const all = el("button", { type: "button", class: "small" }, text.length > LARGE ? `Save all ${text.length.toLocaleString("en-US")} characters` : `Show all ${text.length.toLocaleString("en-US")} characters`);
  all.addEventListener("click", () => {
    if (text.length > LARGE) return save("value.txt", text, "text/plain");
    body.textContent = shownText(text);
    all.remove();
  });
  return el("span", {}, body, "… ", all, " ", copyButton("Copy", () => text));
}

/** Text of several lines keeps its line breaks and tabs; everything else that hides is made visible. */
const shownText = (text) => text.split(/(\n|\t)/).map((part) => (part === "\n" || part === "\t" ? part : shown(part))).join("");

/** The JSON of a value of `parseMarked`, its numbers as they were written. */
export function toJson(value, indent = "") {
  const number = numberOf(value);
  if (number !== undefined) return number;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}  `;
  const isList = Array.isArray(value);
  const parts = isList ? value.map((each) => toJson(each, inner)) : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${toJson(each, inner)}`);
  if (!parts.length) return isList ? "[]" : "{}";
  const body = `\n${inner}${parts.join(`,\n${inner}`)}\n${indent}`;
  return isList ? `[${body}]` : `{${body}}`;
}
