// Instants and the days of a time zone. Instants are milliseconds since 1970; a zone is "UTC" or an IANA name.

const FORMATS = new Map();

function format(zone) {
  if (!FORMATS.has(zone)) {
    const fields = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" };
    FORMATS.set(zone, new Intl.DateTimeFormat("en-US", { ...fields, timeZone: zone, hourCycle: "h23", era: "short" }));
  }
  return FORMATS.get(zone);
}

/** The zone of this browser, as an IANA name. */
export const browserZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

/** Whether the browser knows a zone of this name. */
export function isZone(name) {
  try {
    format(name);
    return true;
  } catch {
    return false;
  }
}

/** [year, month (1 to 12), day, hour, minute, second] of an instant in a zone. */
export function parts(at, zone) {
  if (zone === "UTC") {
    const date = new Date(at);
    return [date.getUTCFullYear(), date.getUTCMonth() + 1, date.getUTCDate(), date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds()];
  }
  const found = Object.fromEntries(format(zone).formatToParts(at).map(({ type, value }) => [type, value]));
  const year = found.era === "BC" ? 1 - Number(found.year) : Number(found.year);
  return [year, ...["month", "day", "hour", "minute", "second"].map((name) => Number(found[name]))];
}

function utc([year, month, day, hour = 0, minute = 0, second = 0]) {
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  date.setUTCHours(hour, minute, second);
  return date.getTime();
}

/**
 * The instant at which a zone's clocks show `fields` (as of `parts`; may overflow: day 0, month 13). Of two the earlier;
 * a time that a change of the clocks skips is the one after the gap.
 */
export function instant(fields, zone) {
  const wanted = utc(fields);
  if (zone === "UTC") return wanted;
  const offset = (at) => utc(parts(at, zone)) - Math.floor(at / 1000) * 1000;
  // The offset a day before and after: if they differ, the clocks change in between.
  const [before, after] = [offset(wanted - 86_400_000), offset(wanted + 86_400_000)];
  const found = [wanted - before, wanted - after].filter((at) => at + offset(at) === wanted);
  return found.length ? Math.min(...found) : wanted - before;
}

/** The beginning of an instant's interval ("minute", "hour", "day", "week", "month") in a zone; weeks begin on Monday. */
export function floor(at, interval, zone) {
  const [year, month, day, , minute] = parts(at, zone);
  if (interval === "minute") return Math.floor(at / 60_000) * 60_000;
  if (interval === "hour") return Math.floor(at / 60_000) * 60_000 - minute * 60_000;
  if (interval === "day") return instant([year, month, day], zone);
  if (interval === "week") {
    const weekday = (new Date(utc([year, month, day])).getUTCDay() + 6) % 7;
    return instant([year, month, day - weekday], zone);
  }
  return instant([year, month, 1], zone);
}

/** The beginning of the interval `count` after the one that begins at `start`. */
export function step(start, interval, zone, count = 1) {
  if (interval === "minute") return start + 60_000 * count;
  if (interval === "hour") return start + 3_600_000 * count;
  const [year, month, day] = parts(start, zone);
  if (interval === "month") return instant([year, month + count, 1], zone);
  return instant([year, month, day + count * (interval === "week" ? 7 : 1)], zone);
}

const two = (number) => String(number).padStart(2, "0");

/** `2026-11-28 14:05:11.123`, cut to `precision` ("day", "minute", "second", "milli"). */
export function timeText(at, zone, precision = "milli") {
  const [year, month, day, hour, minute, second] = parts(at, zone);
  const date = `${String(year).padStart(4, "0")}-${two(month)}-${two(day)}`;
  if (precision === "day") return date;
  const clock = `${date} ${two(hour)}:${two(minute)}`;
  if (precision === "minute") return clock;
  const milli = String(((at % 1000) + 1000) % 1000).padStart(3, "0");
  return `${clock}:${two(second)}${precision === "second" ? "" : `.${milli}`}`;
}

/** Microseconds since 1970 of a time as the server writes it, UTC with up to six digits after the second. */
export function micros(text) {
  const [, seconds, fraction = ""] = /^(.{19})(?:\.(\d+))?Z$/.exec(text);
  return Date.parse(`${seconds}Z`) * 1000 + Number(fraction.padEnd(6, "0").slice(0, 6));
}

/** Milliseconds of it, what is below them cut. */
export const millis = (text) => Math.floor(micros(text) / 1000);

/** An instant as a parameter: UTC with milliseconds. */
export const iso = (at) => new Date(at).toISOString();
