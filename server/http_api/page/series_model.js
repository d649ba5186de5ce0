// What an answer of /v1/metrics says over time: exact series of its groups, of the rest, and of all.
import { colourOf, COLOURS } from "./colours.js";
import { coordinate, isAdditive, unwhole, whole } from "./measures.js";
import { shown } from "./names.js";
import { millis } from "./zone.js";

export const OTHER = "Other";

const valuesOf = (part) => part?.values ?? part ?? {};

/** The name of a group: its values, "absent" for none. */
export function groupName(key) {
  const parts = Object.values(key).map((value) => (value === null ? "absent" : shown(value)));
  return parts.length ? parts.join(" · ") : "All";
}

/**
 * The rows of a question's answer: {groups: [{key, name, values, colour, at}], other, total, multi}. `at(measure, start)`
 * is the value of an interval as text; null: none. The rest beyond `COLOURS` groups is `rest`, by measure and start,
 * for additive measures: the total less what is drawn.
 */
export function model(answer, starts) {
  const used = new Set();
  const places = new Map(starts.map((start, at) => [start, at]));
  const series = (rows) => {
    const found = new Array(starts.length).fill(null);
    for (const row of rows ?? []) {
      const at = places.get(millis(row.start));
      if (at !== undefined) found[at] = row;
    }
    return (measure, at) => found[at]?.[measure] ?? (isAdditive(measure) ? "0" : null);
  };
  const groups = answer.groups.map((group, index) => {
    const name = groupName(group.key);
    return { key: group.key, name, values: group.values, colour: index < COLOURS ? colourOf(name, used) : null, at: series(group.series) };
  });
  const other = answer.other ? { name: OTHER, values: valuesOf(answer.other) } : null;
  const multi = answer.multi ?? [];
  const total = { name: "Total", values: valuesOf(answer.total), at: series(answer.total.series) };
  const hasTotal = Boolean(answer.total.series) || !starts.length;
  const drawn = groups.slice(0, COLOURS);
  const isWhole = groups.length <= COLOURS && !other;
  const rest = isWhole ? null : {
    name: OTHER,
    sum: (measure) => (isAdditive(measure) ? unwhole(measure, drawn.reduce((left, group) => left - whole(measure, group.values[measure]), whole(measure, total.values[measure]))) : null),
    at: (measure, at) => {
      if (!isAdditive(measure)) return null;
      if (!hasTotal) return unwhole(measure, groups.slice(COLOURS).reduce((sum, group) => sum + whole(measure, group.at(measure, at)), 0n));
      const all = whole(measure, total.at(measure, at));
      return unwhole(measure, drawn.reduce((left, group) => left - whole(measure, group.at(measure, at)), all));
    },
  };
  return { starts, groups, drawn, rest, other, total, hasTotal, multi };
}

/** The layers of a stack of one measure, from the lowest: [{name, colour, values}] of exact text. */
export function layers(model, measure, hidden = new Set()) {
  const all = [...model.drawn, ...(model.rest && isAdditive(measure) && !model.multi.length ? [{ ...model.rest, colour: "x" }] : [])];
  return all.filter((each) => !hidden.has(each.name)).map((each) => ({ name: each.name, key: each.key, colour: each.colour, values: model.starts.map((_, at) => each.at(measure, at)) }));
}

/** Running sums of layers as floats for a chart, the tallest first. */
export function stacked(found, measure) {
  const tops = (found[0]?.values ?? []).map(() => 0n);
  return found.map((layer) => layer.values.map((text, at) => coordinate(measure, unwhole(measure, (tops[at] += whole(measure, text)))))).reverse();
}
