// How single values are shown: times, durations, ids, money, rates. Whole values stay in the document; CSS shortens them.
import { el } from "./dom.js";
import { decimal, money } from "./exact.js";
import { shown } from "./names.js";
import { millis, timeText } from "./zone.js";

/** 843 ms, 12.4 s, 3 m 07 s, 2 h 05 m, of milliseconds. The exact number belongs in the hover. */
export function took(ms) {
  const value = Number(ms);
  if (value < 1) return value === 0 ? "0 ms" : `${value.toPrecision(2).replace(/\.?0+$/, "")} ms`;
  if (value < 999.5) return `${Math.round(value)} ms`;
  if (value < 9_995) return `${(value / 1000).toFixed(2)} s`;
  if (value < 59_950) return `${(value / 1000).toFixed(1)} s`;
  const seconds = Math.round(value / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${String(seconds % 60).padStart(2, "0")} s`;
  return `${Math.floor(seconds / 3600)} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} m`;
}

/** A duration with its exact milliseconds in the hover; null is a dash. */
export function duration(ms) {
  return ms === null || ms === undefined ? el("span", {}, "–") : el("span", { title: `${ms} ms` }, took(ms));
}

/** A sum of dollars with all its digits, those after the cents smaller; null is "unpriced". */
export function cost(text) {
  if (text === null || text === undefined) return el("span", { class: "none" }, "unpriced");
  const [main, rest] = money(text);
  return el("span", { class: "sum" }, main, ...(rest ? [el("small", {}, rest)] : []));
}

/** The same of picodollars. */
export const picoCost = (value) => cost(decimal(value));

/** A time of the server's in the page's zone; the hover has UTC with microseconds. */
export function time(text, zone, precision = "milli") {
  return el("time", { datetime: text, title: `${text.replace("T", " ").replace("Z", "")} UTC` }, timeText(millis(text), zone, precision));
}

/** An id or name: whole, isolated from the direction of what is around it, hidden characters made visible. */
export function label(text) {
  return text === null || text === undefined ? el("span", { class: "none" }, "–") : el("bdi", { class: "id" }, shown(String(text)));
}

/** The same as a link. */
export function idLink(text, href) {
  return el("a", { class: "id", href }, el("bdi", {}, shown(String(text))));
}

/** A difference in percent, its sign written out: +12.5%, −3.0%. */
export function signed(number, digits = 1) {
  if (!Number.isFinite(number)) return "–";
  return `${number > 0 ? "+" : number < 0 ? "−" : "±"}${Math.abs(number).toFixed(digits)}%`;
}

/** A decimal number of the server's, shortened where it is long: the whole one belongs in the hover. */
export function short(text) {
  const value = Number(text);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return value.toLocaleString("en-US", { maximumSignificantDigits: Math.abs(value) >= 100 ? 6 : 4 });
}

/** Milliseconds apart, in words: "3 m 12 s later". */
export const later = (ms) => (ms < 0 ? `overlaps by ${took(-ms)}` : `${took(ms)} later`);
