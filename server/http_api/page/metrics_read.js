// A question to /v1/metrics over time, and its model.
import { get } from "./api.js";
import { filtersOf } from "./filters.js";
import { model } from "./series_model.js";
import { asked, intervals } from "./time_range.js";

/**
 * Asks for `measures` by `groups` of a range, in intervals ("none": only sums). Returns {answer, model, pairs}. Throws
 * `Failed`.
 */
export async function readMetrics(params, range, { measures, groups = [], interval = "none", limit = 25 }, signal) {
  const base = [...Object.entries(asked(range)), ...filtersOf(params), ...measures.map((name) => ["measures", name])];
  if (interval !== "none") base.push(["interval", interval]);
  if (range.zone !== "UTC") base.push(["tz", range.zone]);
  const pairs = [...base, ...groups.map((name) => ["group_by", name]), ["limit", limit]];
  const answer = await get("/v1/metrics", pairs, signal);
  const starts = interval === "none" ? [] : intervals(range, interval);
  return { answer, pairs, model: model(answer, starts) };
}
