// The range of time that the address names: presets and two instants of one's own, in one zone for the whole page.
import { floor, iso, isZone, millis, step, timeText } from "./zone.js";

/** Presets by the word in the address. Days are whole days of the zone, today is one of them. */
export const PRESETS = {
  "1h": "Last hour",
  "24h": "Last 24 hours",
  today: "Today",
  yesterday: "Yesterday",
  "7d": "Last 7 days",
  "30d": "Last 30 days",
  "90d": "Last 90 days",
  month: "This month",
  "last-month": "Last month",
  all: "Last 400 days",
};

/** What `all` is called where there is no bound: in the tables. */
export const ALL_TIME = "All time";

export const DEFAULT = "30d";
const HOUR = 3_600_000;
const LAST = Date.parse("9999-12-31T23:59:59.999Z");
export const MOST = 400 * 24 * HOUR; // what the server reads at once

/** The zone of an address; what is no zone is UTC, and `bad` says so. */
export function zoneOf(params) {
  const name = params.get("tz");
  if (!name) return { zone: "UTC" };
  return isZone(name) ? { zone: name } : { zone: "UTC", bad: name };
}

/**
 * What the address says of time, at `now` (milliseconds): {name, start, end, openEnd, zone, label}. `start` is
 * inclusive, `end` exclusive; `openEnd`: it goes on to now, whatever now is when the answer is made.
 */
export function rangeOf(params, now) {
  const { zone } = zoneOf(params);
  const [from, to] = ["start", "end"].map((name) => Date.parse(params.get(name) ?? ""));
  if (!Number.isNaN(from) && (Number.isNaN(to) || to > from)) {
    const openEnd = Number.isNaN(to);
    const end = openEnd ? Math.max(now, from + 1) : to;
    return { name: null, start: from, end, openEnd, zone, label: label(from, openEnd ? null : to, zone) };
  }
  const given = params.get("range");
  const name = given in PRESETS ? given : DEFAULT;
  const [start, end] = bounds(name, now, zone);
  return { name, start, end: end ?? now, openEnd: end === null, zone, label: PRESETS[name] };
}

function bounds(name, now, zone) {
  const today = floor(now, "day", zone);
  switch (name) {
    case "all":
      return [step(today, "day", zone, -398), null];
    case "1h":
      return [floor(now - HOUR, "minute", zone), null];
    case "24h":
      return [floor(now - 24 * HOUR, "minute", zone), null];
    case "today":
      return [today, null];
    case "yesterday":
      return [step(today, "day", zone, -1), today];
    case "month":
      return [floor(now, "month", zone), null];
    case "last-month": {
      const month = floor(now, "month", zone);
      return [step(month, "month", zone, -1), month];
    }
    default:
      return [step(today, "day", zone, 1 - Number.parseInt(name, 10)), null];
  }
}

/** The parameters of a request for it. */
export function asked(range) {
  return { start: iso(range.start), ...(range.openEnd ? {} : { end: iso(range.end) }) };
}

/** The range before, of the same length; of a month the month before, and of what still runs the same part. */
export function before(range) {
  const { start, end, zone, name } = range;
  if (name === "month" || name === "last-month") {
    const first = step(floor(start, "month", zone), "month", zone, -1);
    return { ...range, start: first, end: name === "month" ? Math.min(first + (end - start), start) : start, openEnd: false };
  }
  if (start === floor(start, "day", zone)) {
    const days = Math.max(1, Math.round((floor(end - 1, "day", zone) - start) / (24 * HOUR)) + 1);
    const first = step(start, "day", zone, -days);
    return { ...range, start: first, end: first + (end - start), openEnd: false };
  }
  return { ...range, start: start - (end - start), end: start, openEnd: false };
}

/** Parameters with another range; `fields` are `range`, or `start` and `end`. */
export function withRange(params, fields) {
  const made = new URLSearchParams(params);
  for (const name of ["range", "start", "end"]) made.delete(name);
  for (const [name, value] of Object.entries(fields)) if (value !== undefined && !(name === "range" && value === DEFAULT)) made.set(name, value);
  return made;
}

/**
 * The parameters of all events of a trace or session, wherever the range of `params` lies: its own times, and `pairs`. Of
 * `params` only the zone is kept: the sums beside the link are those of all its events.
 */
export function eventsWithin(params, { start, end }, pairs) {
  const made = new URLSearchParams({ start: iso(millis(start)), end: iso(Math.min(millis(end) + 1, LAST)) });
  if (params.get("tz")) made.set("tz", params.get("tz"));
  for (const [name, value] of pairs) made.append(name, value);
  return made;
}

const INTERVALS = ["minute", "hour", "day", "week", "month"];
const LENGTHS = { minute: 60_000, hour: HOUR, day: 24 * HOUR, week: 7 * 24 * HOUR, month: 30 * 24 * HOUR };

/** The finest interval of which at most `most` make up the range. */
export function intervalOf({ start, end }, most) {
  return INTERVALS.find((each) => (end - start) / LENGTHS[each] <= most) ?? "month";
}

/** The beginnings of all intervals of a range, in order. */
export function intervals({ start, end, zone }, interval) {
  const found = [];
  for (let at = floor(start, interval, zone); at < end && found.length < 2000; at = step(at, interval, zone)) found.push(at);
  return found;
}

function label(from, to, zone) {
  const day = (at) => at === floor(at, "day", zone);
  const whole = day(from) && to !== null && day(to);
  const [first, last] = whole ? [from, step(to, "day", zone, -1)] : [from, to];
  const precision = whole ? "day" : (from % 60_000 || (to ?? 0) % 60_000) ? "second" : "minute";
  if (whole && first === last) return timeText(first, zone, "day");
  return `${timeText(first, zone, precision)} to ${to === null ? "now" : timeText(last, zone, precision)}`;
}

/** How an interval's beginning is written. */
export function intervalText(at, interval, zone) {
  if (interval === "month") return timeText(at, zone, "day").slice(0, 7);
  if (interval === "week") return `week of ${timeText(at, zone, "day")}`;
  return timeText(at, zone, interval === "day" ? "day" : "minute");
}

/** `2026-11-28T14:05:11` for a field of type datetime-local, and back. */
export const fieldText = (at, zone) => timeText(at, zone, "second").replace(" ", "T");

export function fieldParts(text) {
  const [, ...found] = /^(\d+)-(\d+)-(\d+)T(\d+):(\d+)(?::(\d+))?/.exec(text) ?? [];
  return found.length ? found.map((each) => Number(each ?? 0)) : null;
}
