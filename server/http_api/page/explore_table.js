// The table under Explore's chart: a row a group, then Other and Total; what was before; and all of it as CSV.
import { el } from "./dom.js";
import { dollars, percent } from "./exact.js";
import { cost, signed } from "./cells.js";
import { ofGroup, sharedOf, withOnly } from "./filters.js";
import { isAdditive, measureTitle, unwhole, valueText, whole } from "./measures.js";
import { format } from "./router.js";
import { intervalText } from "./time_range.js";
import { iso, timeText } from "./zone.js";

/** The parameters of the events of a group; `without`: of none of these groups, by one field. */
export function eventsOf(params, key) {
  let made = sharedOf(params);
  for (const [name, value] of ofGroup(key)) {
    if (name === "tag") made = withOnly(made, "tag", value);
    else made = withOnly(made, name, value);
  }
  return made;
}

/** The parameters of what is in none of the shown groups: only where there is one field that can exclude. */
export function eventsOfOther(params, groups, names) {
  if (names.length !== 1 || names[0] === "kind" || groups.length > 60) return null;
  const made = sharedOf(params);
  for (const group of groups) {
    const [[name, value]] = ofGroup(group.key);
    made.append(`${name}!`, value);
  }
  return made;
}

/** Rows of {kind, name, key, values, before(measure)} in order: groups, Other, Total. `earlier`: the answer for the range before. */
export function tableRows(model, earlier) {
  const old = new Map((earlier?.groups ?? []).map((group) => [JSON.stringify(group.key), group.values]));
  const total = earlier && (earlier.total.values ?? earlier.total);
  // A group that the whole answer does not name had nothing; of one cut off at its limit nobody knows.
  const had = (key) => (measure) => old.get(JSON.stringify(key))?.[measure] ?? (earlier && !earlier.other && isAdditive(measure) ? "0" : null);
  const rows = model.groups.map((group) => ({ kind: "group", name: group.name, key: group.key, values: group.values, before: had(group.key) }));
  if (model.other) {
    const shown = [...rows];
    const rest = (measure) => {
      const parts = shown.map((row) => row.before(measure));
      if (!total || !isAdditive(measure) || model.multi.length || parts.includes(null)) return null;
      return unwhole(measure, parts.reduce((left, part) => left - whole(measure, part), whole(measure, total[measure])));
    };
    rows.push({ kind: "other", name: "Other", values: model.other.values, before: rest });
  }
  rows.push({ kind: "total", name: "Total", values: model.total.values, before: (measure) => total?.[measure] ?? null });
  return rows;
}

/** `now` against `before` of a measure: the difference as text, and in percent. */
export function change(measure, now, before) {
  if (now === null || now === undefined || before === null || before === undefined) return ["–", ""];
  if (isAdditive(measure)) {
    const [a, b] = [whole(measure, now), whole(measure, before)];
    const difference = unwhole(measure, a > b ? a - b : b - a);
    const text = measure === "cost_usd" ? dollars(difference) : valueText(measure, difference);
    const share = b === 0n ? "" : signed((Number(a - b) / Number(b)) * 100);
    return [`${a > b ? "+" : a < b ? "−" : "±"}${text}`, share];
  }
  const [a, b] = [Number(now), Number(before)];
  return [`${a >= b ? "+" : "−"}${valueText(measure, String(Math.abs(a - b)))}`, b ? signed(((a - b) / b) * 100) : ""];
}

/** A value as a cell shows it: sums of dollars with the digits after the cents smaller. */
const shownValue = (measure, text, zone) => (measure.startsWith("cost_usd") && text !== null && text !== undefined ? cost(text) : valueText(measure, text, zone));

/** The table as an element. */
export function exploreTable(model, question, earlier, params) {
  const { measures, groups, range } = question;
  const additive = measures.find(isAdditive);
  const head = ["Group", ...measures.flatMap((name) => [measureTitle(name), ...(name === additive ? ["Share"] : []), ...(earlier ? ["Before", "Change"] : [])])];
  const shareClass = earlier ? "number wide" : "number"; // a phone has room for what was before instead
  const total = additive && whole(additive, model.total.values[additive] ?? "0");
  const other = model.other && eventsOfOther(params, model.groups, groups);
  const body = tableRows(model, earlier).map((row) => {
    const target = row.kind === "group" ? eventsOf(params, row.key) : row.kind === "total" ? sharedOf(params) : other;
    const name = target ? el("a", { href: format("events", null, target) }, el("bdi", {}, row.name)) : el("bdi", {}, row.name);
    const cells = measures.flatMap((measure) => {
      const text = row.values[measure];
      const made = [el("td", { class: "number", ...(text && { title: text }) }, shownValue(measure, text, range.zone))];
      if (measure === additive) made.push(el("td", { class: shareClass }, model.multi.length ? "–" : percent(whole(measure, text ?? "0"), total)));
      if (earlier) {
        const before = row.before(measure);
        const [difference, share] = change(measure, text, before);
        made.push(el("td", { class: "number" }, shownValue(measure, before, range.zone)), el("td", { class: "number" }, difference, share && " ", share && el("span", { class: "sub" }, share)));
      }
      return made;
    });
    return el("tr", { class: row.kind }, el("th", { scope: "row" }, name), ...cells);
  });
  const table = el("table", { class: "list explore-table" }, el("caption", { class: "unseen" }, "Groups of the range"), el("thead", {}, el("tr", {}, ...head.map((text, at) => el("th", { scope: "col", class: !at ? undefined : text === "Share" ? shareClass : "number" }, text)))), el("tbody", {}, ...body));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Groups: table" }, table);
}

/** The series of a measure as a table: a row an interval, a column a group. */
export function intervalTable(model, measure, interval, zone) {
  const columns = [...model.drawn, ...(model.rest && isAdditive(measure) ? [model.rest] : []), ...(model.hasTotal || model.groups.length === 1 ? [model.total] : [])];
  const rows = model.starts.map((start, at) => el("tr", {}, el("th", { scope: "row" }, intervalText(start, interval, zone)), ...columns.map((column) => el("td", { class: "number" }, shownValue(measure, column.at(measure, at), zone)))));
  const head = el("tr", {}, el("th", { scope: "col" }, "From"), ...columns.map((column) => el("th", { scope: "col", class: "number" }, el("bdi", {}, column.name))));
  return el("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": `${measureTitle(measure)} over time: table` }, el("table", { class: "list" }, el("caption", { class: "unseen" }, `${measureTitle(measure)} over time`), el("thead", {}, head), el("tbody", {}, ...rows.reverse())));
}

/** What is shown, all digits: the sums of the range, then each interval. */
export function exploreCsv(model, question, earlier) {
  const { measures, groups, range, interval, limit } = question;
  const own = groups.length ? groups : ["group"];
  const head = ["start_utc", `start ${range.zone}`, ...own, ...measures, ...(earlier ? measures.map((name) => `${name} before`) : [])];
  const names = (row) => (row.kind === "group" && groups.length ? groups.map((name) => row.key[name] ?? "") : [row.name, ...own.slice(1).map(() => "")]);
  const sums = tableRows(model, earlier).map((row) => ["", "", ...names(row), ...measures.map((name) => row.values[name] ?? null), ...(earlier ? measures.map((name) => row.before(name)) : [])]);
  const series = model.starts.flatMap((start, at) => {
    const parts = [...model.groups.map((group) => ({ kind: "group", ...group })), ...(model.rest && !model.multi.length && model.hasTotal ? [{ kind: "other", name: "Other", at: restAt(model) }] : []), ...(model.hasTotal || model.groups.length === 1 ? [{ kind: "total", ...model.total }] : [])];
    return parts.map((part) => [iso(start), timeText(start, range.zone, "second"), ...names(part), ...measures.map((name) => part.at(name, at))]);
  });
  const note = model.other ? [[`The ${limit} largest groups by ${measures[0]} over the range; the others together are Other`]] : [];
  return [head, ...sums, ...(interval === "none" ? [] : series), ...note];
}

/** What is in none of the groups of the table, by interval. */
function restAt(model) {
  return (measure, at) => {
    if (!isAdditive(measure)) return null;
    return unwhole(measure, model.groups.reduce((left, group) => left - whole(measure, group.at(measure, at)), whole(measure, model.total.at(measure, at))));
  };
}

