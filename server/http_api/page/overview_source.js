// Where the overview and the pages of users read: the tables, which know whole UTC days of everything, or the events.
import { get } from "./api.js";
import { filtersOf } from "./filters.js";
import { format } from "./router.js";
import { asked, rangeOf, withRange } from "./time_range.js";
import { floor, instant, iso, millis, step, timeText } from "./zone.js";

const BEGINNING = "0001-01-01T00:00:00Z"; // no event is older
const GROUPS = 1000; // the most that an answer has
const SUMS = ["requests", "cost_usd", "input_tokens", "output_tokens", "cached_tokens", "errors", "unpriced"];
const AVERAGES = ["cost_usd:avg", "latency_ms:p50", "latency_ms:p95", "latency_ms:p99"];
const PERSON = ["first_seen", "last_seen"];

const isDay = (at) => at === floor(at, "day", "UTC");

/**
 * What an address asks of the overview, or of a user's page, at `now`: {params, range, zone, key, isTables, isAll, words,
 * first, last, today}. Days are those of the zone: `first` is undefined for all time, which only the tables have; `last`
 * and `today` are null for a range that goes on, or does not.
 */
export function sourceOf(address, now, userId = null) {
  const params = new URLSearchParams(address);
  if (userId !== null) params.delete("user_id"); // it is one user's page: a filter by user says nothing more
  const range = rangeOf(params, now);
  const { zone, start, end, openEnd } = range;
  const isTables = zone === "UTC" && !filtersOf(params).length && isDay(start) && (openEnd || isDay(end));
  const isAll = isTables && range.name === "all";
  const day = (at) => timeText(at, zone, "day");
  const words = isAll ? "all time" : range.name ? range.label.toLowerCase() : range.label;
  const ends = openEnd ? null : day(end - 1);
  return { params, range, zone, isTables, isAll, words, key: `${params}|${day(now)}`, first: isAll ? undefined : day(start), last: ends, today: openEnd ? day(now) : null };
}

/** "in the last 30 days", of a source's words. */
export function during({ words }) {
  if (words === "all time") return "in all";
  return words.startsWith("last") ? `in the ${words}` : /^(this|today|yesterday)/.test(words) ? words : `from ${words}`;
}

/** The address of the events of a day of a source's zone; `params` are what the link keeps. */
export function eventsOfDay({ zone }, params, day) {
  const start = instant(day.split("-").map(Number), zone);
  return format("events", null, withRange(params, { start: iso(start), end: iso(step(start, "day", zone)) }));
}

const times = ({ isAll, range }) => (isAll ? { start: BEGINNING } : asked(range));

/** The parameters of a read of users' tables: their ranges are days. */
export const daysAsked = ({ first, range, last }) => ({ start: first, end: range.openEnd || !last ? undefined : iso(range.end) });

/** What GET /v1/costs says of a source: by the tables, or the same shape made of /v1/metrics. Throws `Failed`. */
export async function readCosts(source, signal) {
  return source.isTables ? get("/v1/costs", times(source), signal) : costsOfEvents(source, [], signal);
}

async function costsOfEvents(source, more, signal) {
  const measures = [...SUMS, ...AVERAGES, ...(more.length ? PERSON : [])];
  const pairs = [...question(source, measures), ...more, ["group_by", "provider"], ["group_by", "model"], ["interval", "day"], ["sort", "cost_usd"], ["limit", GROUPS]];
  if (source.zone !== "UTC") pairs.push(["tz", source.zone]);
  const answer = await get("/v1/metrics", pairs, signal);
  const dayOf = ({ start }) => timeText(millis(start), source.zone, "day");
  const dailyByModel = answer.groups.flatMap(({ key, series }) => series.map((sums) => ({ ...key, day: dayOf(sums), cost_usd: sums.cost_usd })));
  const row = ({ key, values }) => ({ ...key, ...values, avgCost: values["cost_usd:avg"] ?? "0", latencyMs: latency(values) });
  const byModel = answer.groups.map(row);
  if (answer.other) byModel.push(row({ key: { provider: "", model: null }, values: answer.other }));
  const daily = answer.total.series.map((sums) => ({ day: dayOf(sums), cost_usd: sums.cost_usd }));
  return { asOf: answer.asOf, lagSeconds: answer.lagSeconds, total: answer.total, byModel, daily, dailyByModel };
}

function question({ range, params }, measures) {
  return [...Object.entries(asked(range)), ...filtersOf(params), ...measures.map((name) => ["measures", name])];
}

function latency(values) {
  const [p50, p95, p99] = AVERAGES.slice(1).map((name) => values[name]);
  return p50 === null || p50 === undefined ? null : { p50, p95, p99 };
}

/** One user as GET /v1/users/ID says it, made of events; `requests` is "0" for one without any. Throws `Failed`. */
export async function userOfEvents(source, id, signal) {
  const found = await costsOfEvents(source, [["user_id", id]], signal);
  return { ...found.total, asOf: found.asOf, lagSeconds: found.lagSeconds, byDay: found.daily, byModel: found.byModel };
}

/**
 * Users with their sums, the greatest by `sort` first: {rows, total, rest}. Of more than an answer has, `total` is still
 * how many there are, and `rest` the sums of the others; else it is null. `id`: only this one. Throws `Failed`.
 */
export async function usersOfEvents(source, sort, id, signal) {
  const measures = [sort, ...SUMS.filter((name) => name !== sort), ...(sort === "last_seen" ? [] : ["last_seen"])];
  const own = id === undefined ? [] : [["user_id", id]];
  const answer = await get("/v1/metrics", [...question(source, measures), ...own, ["group_by", "user_id"], ["limit", GROUPS]], signal);
  const rows = answer.groups.map(({ key, values }) => ({ ...key, ...values }));
  return { rows, total: answer.other ? await usersIn(source, rows, signal) : rows.length, rest: answer.other };
}

/** How many users have events, "no user" among them as one. */
async function usersIn(source, rows, signal) {
  const sums = async (measure, own) => (await get("/v1/metrics", [...question(source, [measure]), ...own], signal)).total[measure];
  const [users, nobodys] = await Promise.all([sums("users", []), rows.some((row) => row.user_id === null) ? "1" : sums("requests", [["user_id", ""]])]);
  return Number(users) + (nobodys === "0" ? 0 : 1);
}
