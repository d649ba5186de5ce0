// A question to /v1/metrics over time, and its model. A second question gives the totals by interval, where they are not what
// the groups of the first add up to: groups are left out, events are in several of them, or a measure does not add up.
import { get } from "./api.js";
import { filtersOf } from "./filters.js";
import { isAdditive } from "./measures.js";
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
  const isSum = answer.other === null && !(answer.multi ?? []).length && (answer.groups.length < 2 || measures.every(isAdditive));
  const needsSums = interval !== "none" && groups.length > 0 && !isSum && !answer.total?.series;
  const sums = needsSums ? await get("/v1/metrics", base, signal) : undefined;
  return { answer, pairs, model: model(answer, starts, sums) };
}
