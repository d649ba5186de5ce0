// Two to four versions of a prompt beside each other: figures, differences to one of them, and which are larger than chance.
import { get, Latest } from "./api.js";
import { short, signed, took } from "./cells.js";
import { el } from "./dom.js";
import { count, counted, dollars } from "./exact.js";
import { filtersOf, sharedOf, withOnly } from "./filters.js";
import { readMetrics } from "./metrics_read.js";
import { shown } from "./names.js";
import { busy, problem } from "./notices.js";
import { asList } from "./pages.js";
import { current, format, go } from "./router.js";
import { SeriesChart } from "./series_chart.js";
import { holm, LEAST, LEVEL, pText, proportions, welch } from "./significance.js";
import { asked, intervalOf, rangeOf } from "./time_range.js";

const BARS = 40;

/** Rows that every version has; scores are added. `n(group, version)` counts what a mean is made of. */
const ROWS = [
  { name: "Cost per request", measure: "cost_usd:avg", sd: "cost_usd:sd", text: (value) => dollars(trimmed(value)), spread: "cost" },
  { name: "Input tokens per request", ratio: ["input_tokens", "requests"] },
  { name: "Output tokens per request", ratio: ["output_tokens", "requests"] },
  { name: "Latency, mean", measure: "latency_ms:avg", sd: "latency_ms:sd", text: took, spread: "latency_ms" },
  { name: "Latency, p95", measure: "latency_ms:p95", text: took },
  { name: "First token, mean", measure: "ttft_ms:avg", sd: "ttft_ms:sd", text: took, spread: "ttft_ms" },
  { name: "Error rate", measure: "error_rate", text: (value) => `${(Number(value) * 100).toFixed(1)}%`, isRate: true },
];

const trimmed = (value) => value.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");

export class Comparison {
  #latest = new Latest();

  constructor(host, context) {
    Object.assign(this, { host, context });
  }

  clear() {
    this.#latest.abort();
    this.key = null;
    this.host.replaceChildren();
  }

  async update(route, hashes, base) {
    const { params } = route;
    const key = JSON.stringify([String(sharedOf(params)), hashes, base]);
    if (key === this.key) return;
    this.key = key;
    const signal = this.#latest.begin(this.context.signal);
    const done = busy(this.host);
    try {
      const range = rangeOf(params, Date.now());
      const own = sharedOf(params);
      own.delete("prompt_hash");
      for (const hash of hashes) own.append("prompt_hash", hash);
      const listed = await get("/v1/prompts", [...Object.entries(asked(range)), ...filtersOf(own), ["limit", 50]], signal);
      const versions = new Map(listed.prompts.map((row) => [row.prompt_hash, row]));
      const scores = [...new Set(listed.prompts.flatMap((row) => Object.keys(row.scores ?? {})))].sort().slice(0, 5);
      const rows = [...ROWS, ...scores.map((name) => ({ name: `Score ${shown(name)}`, measure: `score:${name}:avg`, sd: `score:${name}:sd`, n: `score:${name}:count`, text: short }))];
      const measures = ["requests", "errors", "unpriced", "input_tokens", "output_tokens", ...rows.flatMap((row) => [row.measure, row.sd, row.n]).filter(Boolean)];
      const interval = intervalOf(range, BARS);
      const { answer, model } = await readMetrics(own, range, { measures: [...new Set(measures)], groups: ["prompt_hash"], interval, limit: 10 }, signal);
      const groups = hashes.map((hash) => model.groups.find((group) => group.key.prompt_hash === hash) ?? null);
      this.#draw({ rows, groups, hashes, base, versions, model, interval, range, params, answer });
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error)) return;
      this.key = null;
      this.host.replaceChildren(problem(asList(error), { retry: () => this.update(route, hashes, base), signal }));
    } finally {
      done();
    }
  }

  #draw({ rows, groups, hashes, base, versions, model, interval, range, params }) {
    const at = Math.max(0, hashes.indexOf(base));
    const tests = rows.map((row) => groups.map((group, column) => (column === at || !group || !groups[at] ? null : testOf(row, group, groups[at], versions))));
    const adjusted = holm(tests.flat().map((test) => test?.p ?? null));
    const heads = hashes.map((hash, column) => {
      const radio = el("input", { type: "radio", name: "base", "aria-label": `Base ${hash}` });
      radio.checked = column === at;
      radio.addEventListener("change", () => {
        const made = new URLSearchParams(current().params);
        made.set("base", hash);
        go(format("prompts", null, made));
      });
      const link = el("a", { href: format("events", null, withOnly(sharedOf(params), "prompt_hash", hash)) }, el("bdi", { class: "id" }, shown(hash)));
      const requests = groups[column]?.values.requests ?? "0";
      const swatch = groups[column] ? el("i", { class: `swatch s${groups[column].colour}` }) : "";
      return el("th", { scope: "col", class: "number" }, swatch, " ", link, el("label", { class: "sub check" }, radio, column === at ? "base" : "as base"), el("span", { class: "sub" }, counted(requests, "request")));
    });
    const body = rows.map((row, line) => {
      const cells = groups.map((group, column) => this.#cell(row, group, groups[at], column === at, tests[line][column], adjusted[line * groups.length + column]));
      const place = el("td", { class: "spark" });
      if (row.measure) this.#spark(place, { ...model, groups: groups.filter(Boolean), drawn: groups.filter(Boolean), rest: null }, row, interval, range);
      return el("tr", {}, el("th", { scope: "row" }, row.name), ...cells, place);
    });
    const table = el("table", { class: "list compare" }, el("caption", { class: "unseen" }, "Versions beside each other"), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Per version"), ...heads, el("th", { scope: "col" }, "Over time"))), el("tbody", {}, ...body));
    this.host.replaceChildren(
      el("div", { class: "head" }, el("h2", {}, "Versions beside each other"), el("p", { class: "sub" }, range.label)),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Comparison: table" }, table),
      el("p", { class: "hint" }, `A mark stands where the difference to the base is larger than chance: Welch's t test for means, two proportions for rates, two-sided p < ${LEVEL} after Holm over all that is shown, at least ${LEAST} requests each.`),
    );
    for (const chart of this.charts ?? []) chart();
    this.charts = [];
  }

  #cell(row, group, base, isBase, test, p) {
    const value = valueOf(row, group);
    if (value === null) return el("td", { class: "number" }, "–");
    const cell = el("td", { class: "number", title: String(value.exact) }, value.text);
    const old = isBase ? null : valueOf(row, base);
    if (old) cell.append(el("br"), el("span", { class: "sub" }, difference(row, value.number, old.number)));
    if (!test) return cell;
    if (test.few) cell.append(el("br"), el("span", { class: "sub" }, "too few to tell"));
    else if (p !== null && p < LEVEL) {
      const words = `${value.number > old.number ? "▲ higher" : "▼ lower"}, ${pText(p)}`;
      cell.append(el("br"), el("b", { class: "mark", title: `${words}, ${count(String(test.n[0]))} and ${count(String(test.n[1]))} requests` }, words));
    }
    return cell;
  }

  #spark(place, model, row, interval, range) {
    const host = el("div", { class: "small-chart" });
    place.append(host);
    const chart = new SeriesChart(host, { name: `${row.name} over time` });
    const draw = () => chart.update(model, row.measure, { interval, zone: range.zone, isStack: false, height: 70 });
    (this.charts ??= []).push(draw);
  }
}

/** {text, number, exact} of a row for a version; null: it has none. */
function valueOf(row, group) {
  if (!group) return null;
  if (row.ratio) {
    const [part, all] = row.ratio.map((name) => Number(group.values[name]));
    return all ? { text: short((part / all).toFixed(1)), number: part / all, exact: `${count(group.values[row.ratio[0]])} / ${count(group.values[row.ratio[1]])}` } : null;
  }
  const text = group.values[row.measure];
  return text === null || text === undefined ? null : { text: row.text(text), number: Number(text), exact: text };
}

function difference(row, now, old) {
  const size = Math.abs(now - old);
  const text = row.ratio ? short(size.toFixed(1)) : row.isRate ? `${(size * 100).toFixed(1)} points` : row.text(String(row.measure.startsWith("cost") ? size.toFixed(12) : size));
  const sign = now > old ? "+" : now < old ? "−" : "±";
  return `${sign}${text}${old ? ` (${signed(((now - old) / old) * 100)})` : ""}`;
}

/** The test of a row of two versions: {p, n} or {few: true}; null: none is made. */
function testOf(row, group, base, versions) {
  const sides = [group, base].map((each) => {
    const n = countOf(row, each, versions);
    return n === null ? null : { n, mean: Number(each.values[row.measure] ?? Number.NaN), sd: Number(each.values[row.sd] ?? Number.NaN), hits: Number(each.values.errors) };
  });
  if ((!row.sd && !row.isRate) || sides.some((side) => side === null)) return null;
  const n = sides.map((side) => side.n);
  if (n.some((each) => each < LEAST)) return { few: true, n };
  const p = row.isRate ? proportions(...sides) : welch(...sides);
  return p === null ? null : { p, n };
}

/** How many requests a mean is made of, as the server counts them; null where it does not say. */
function countOf(row, group, versions) {
  if (row.isRate) return Number(group.values.requests);
  if (row.n) return Number(group.values[row.n] ?? 0);
  const version = versions.get(group.key.prompt_hash);
  const counted = version?.[row.spread]?.count;
  if (counted !== undefined && counted !== null) return Number(counted);
  return row.spread === "cost" ? Number(group.values.requests) - Number(group.values.unpriced) : null;
}
