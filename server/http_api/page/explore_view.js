// Explore: a question to /v1/metrics by pickers, its chart, its table, its CSV.
import { address, get, Latest } from "./api.js";
import { copyButton, save } from "./clipboard.js";
import { csv } from "./csv.js";
import { el, show, write } from "./dom.js";
import { asCurl } from "./examples.js";
import { escapeKey, filtersOf } from "./filters.js";
import { standsOut } from "./explore_hint.js";
import { eventsOf, eventsOfOther, exploreCsv, exploreTable, intervalTable } from "./explore_table.js";
import { freshness } from "./freshness.js";
import { isAdditive, isDrawn, measureTitle, OFFERED, SCORED, STATISTICS } from "./measures.js";
import { shown } from "./names.js";
import { readMetrics } from "./metrics_read.js";
import { busy, problem } from "./notices.js";
import { asList, narrowed, whyEmpty } from "./pages.js";
import { popover } from "./popover.js";
import { current, format, go } from "./router.js";
import { forget, keep, saved } from "./saved.js";
import { SeriesChart } from "./series_chart.js";
import { asked, before, intervalOf, rangeOf, withRange } from "./time_range.js";
import { iso, step } from "./zone.js";

const GROUPS = { model: "model", user_id: "user", environment: "environment", status: "status", provider: "provider", operation: "operation", session_id: "session", prompt_hash: "prompt", error_code: "error code", name: "name", kind: "kind", tool: "tool" };
const VIEWS = { bars: "Bars", lines: "Lines", grid: "One chart a group", table: "Table" };
const INTERVALS = ["auto", "minute", "hour", "day", "week", "month"];
const MOST_BARS = 120;
const MOST_MEASURES = 4;

export const own = ["measures", "group_by", "interval", "limit", "view", "compare", "hide", "scale"];
export const unused = () => [];

/** What an address asks. */
function questionOf(params) {
  const range = rangeOf(params, Date.now());
  const measures = params.getAll("measures").slice(0, MOST_MEASURES);
  const given = params.getAll("group_by");
  const interval = params.get("interval") ?? "auto";
  return {
    range,
    measures: measures.length ? measures : ["cost_usd"],
    groups: (given.length ? given : ["model"]).filter(Boolean).slice(0, 3),
    interval: interval === "auto" || !INTERVALS.includes(interval) ? (range.end - range.start > 2 * 86_400_000 && intervalOf(range, MOST_BARS) === "hour" ? "day" : intervalOf(range, MOST_BARS)) : interval,
    limit: Math.min(1000, Math.max(1, Number.parseInt(params.get("limit") ?? "25", 10) || 25)),
    view: params.get("view") in VIEWS ? params.get("view") : "bars",
    compare: params.get("compare") === "1",
    hidden: new Set(params.getAll("hide")),
  };
}

export class View {
  #latest = new Latest();
  #charts = [];

  constructor(host, context) {
    Object.assign(this, { host, context });
    this.title = el("h1", { class: "unseen", tabindex: "-1" }, "Explore");
    this.pickers = el("div", { class: "pickers" });
    this.notice = el("div");
    this.sub = el("p", { class: "sub", role: "status" });
    this.stamp = el("p", { class: "hint" });
    this.hint = el("p", { class: "hint", role: "note" });
    this.charts = el("div", { class: "charts" });
    this.table = el("div");
    this.series = el("div");
    this.details = el("details", {}, el("summary", {}, "By interval, as a table"), this.series);
    this.details.addEventListener("toggle", () => this.#tabulate());
    this.csv = el("button", { type: "button" }, "CSV");
    this.csv.addEventListener("click", () => this.#save());
    this.saving = popover("Saved", (panel) => this.#fillSaved(panel));
    const curl = copyButton("Copy as curl", () => asCurl(address("/v1/metrics", this.read?.pairs ?? [])), { class: "" });
    const head = el("div", { class: "head" }, this.sub, el("span", { class: "grow" }), this.csv, curl, this.saving.button);
    this.result = el("section", { class: "card", "aria-label": "Answer" }, head, this.saving.panel, this.hint, this.charts, this.table, this.details, this.stamp);
    host.replaceChildren(this.title, el("section", { class: "card", "aria-label": "Question" }, this.pickers), this.notice, this.result);
  }

  async update(route, restored, isNew) {
    this.question = questionOf(route.params);
    this.#pickers(route.params);
    const key = JSON.stringify([...route.params].filter(([name]) => !["view", "hide", "scale"].includes(name)));
    if (key === this.key && (restored || !isNew)) {
      if (this.read) this.#draw();
      return;
    }
    this.key = key;
    await this.#read(route);
  }

  close() {
    this.#latest.abort();
  }

  async #read(route) {
    const { question } = this;
    const { range, measures, groups, interval, limit } = question;
    const signal = this.#latest.begin(this.context.signal);
    const done = busy(this.result);
    try {
      const asking = { measures, groups, limit };
      const [read, earlier] = await Promise.all([
        readMetrics(route.params, range, { ...asking, interval }, signal),
        question.compare ? readMetrics(route.params, before(range), { ...asking, interval, limit: 1000 }, signal) : null,
      ]);
      const isEmpty = !read.answer.groups.length;
      this.notice.replaceChildren(...(isEmpty ? [await whyEmpty(route, signal)] : []));
      show(this.result, !isEmpty);
      Object.assign(this, { read, earlier });
      if (isEmpty && this.notice.querySelector("[data-waits]")) setTimeout(() => !signal.aborted && this.#read(route), 3000);
      if (!isEmpty) this.#draw();
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error)) return;
      this.key = null;
      show(this.result, false);
      this.notice.replaceChildren(problem(asList(error), { retry: () => this.#read(route), narrow: (how) => narrowed(route, how), signal }));
    } finally {
      done();
    }
  }

  #draw() {
    const { read, earlier, question } = this;
    const { view, measures, interval, range, hidden } = question;
    const { model } = read;
    write(this.sub, `${range.label}, by ${interval}${question.compare ? `, against ${rangeText(before(range))}` : ""}`);
    write(this.stamp, freshness(read.answer, range.zone));
    this.#hint();
    const drawn = measures.filter(isDrawn);
    show(this.charts, view !== "table" && drawn.length > 0);
    const wanted = view === "grid" ? model.drawn.map((group) => ({ measure: drawn[0], group })) : drawn.map((measure) => ({ measure }));
    this.charts.classList.toggle("grid", view === "grid");
    this.#charts = view === "table" ? [] : wanted.map(() => el("figure", {}));
    this.charts.replaceChildren(...this.#charts);
    const top = view === "grid" && current().params.get("scale") !== "own" ? this.#top(model, drawn[0]) : null;
    if (view !== "table") wanted.forEach((each, at) => this.#chart(this.#charts[at], each, { model, view, interval, range, hidden, earlier, top }));
    if (view === "grid" && model.rest) this.charts.append(el("p", { class: "hint" }, `The ${model.drawn.length} largest groups; the others are in the table.`));
    this.table.replaceChildren(exploreTable(model, question, earlier?.answer, current().params));
    if (model.multi.length) this.table.append(el("p", { class: "hint" }, `An event can be in several groups of ${model.multi.map(shown).join(", ")}: they add up to more than the total.`));
    if (model.other) this.table.append(el("p", { class: "hint" }, `The ${model.groups.length} largest groups by ${measureTitle(measures[0]).toLowerCase()} over the whole range. `, this.#more()));
    show(this.details, drawn.length > 0 && model.starts.length > 0);
    this.#tabulate();
  }

  /** The day that stands out by the first measure, as a link to its events. */
  #hint() {
    const { read, question } = this;
    const found = standsOut(read.model, question.measures[0], question);
    show(this.hint, found !== null);
    if (!found) return;
    const day = el("a", { href: this.#addressOf(found.at, null) }, found.day);
    this.hint.replaceChildren(`${measureTitle(question.measures[0])} on `, day, ` ${found.text}.`);
  }

  #chart(figure, { measure, group }, { model, view, interval, range, hidden, earlier, top }) {
    const title = group ? `${group.name}: ${measureTitle(measure)}` : measureTitle(measure);
    const place = el("div");
    figure.replaceChildren(el("figcaption", {}, el("bdi", {}, title)), place);
    const chart = new SeriesChart(place, {
      name: `${title} by ${interval}: arrows move over the bars, Enter opens the events`,
      sync: "explore",
      onOpen: (at, layer) => this.#open(at, layer ?? group),
      onNarrow: (from, to) => this.#narrow(from, to),
      onLegend: group ? undefined : (name) => this.#hide(name),
    });
    const part = group ? { ...model, groups: [group], drawn: [group], rest: null, total: { ...group, name: "Total" }, hasTotal: true } : model;
    const ghost = earlier && !group ? this.#ghost(earlier.model, model, measure) : null;
    chart.update(part, measure, { interval, zone: range.zone, hidden: group ? new Set() : hidden, isStack: view !== "lines", open: range.openEnd, ghost, top, height: group ? 120 : 260 });
  }

  #ghost(old, now, measure) {
    if (!isAdditive(measure)) return null;
    const total = old.groups.length === 1 && !old.other ? old.groups[0] : old.hasTotal ? old.total : null;
    return total && now.starts.map((_, at) => (at < old.starts.length ? total.at(measure, at) : null));
  }

  #top(model, measure) {
    return Math.max(...model.drawn.flatMap((group) => model.starts.map((_, at) => Number(group.at(measure, at) ?? 0)))) * 1.08 || 1;
  }

  #tabulate() {
    if (!this.details.open || !this.read) return;
    const { measures, interval, range } = this.question;
    this.series.replaceChildren(...measures.filter(isDrawn).map((name) => intervalTable(this.read.model, name, interval, range.zone)));
  }

  #open(at, layer) {
    go(this.#addressOf(at, layer));
  }

  /** The address of the events of a bar, or of one layer of it. */
  #addressOf(at, layer) {
    const { params } = current();
    const { interval, range, groups } = this.question;
    const start = this.read.model.starts[at];
    const end = step(start, interval, range.zone);
    const times = { start: iso(Math.max(start, range.start)), end: iso(range.openEnd ? end : Math.min(end, range.end)) };
    const other = layer?.colour === "x" ? eventsOfOther(params, this.read.model.drawn, groups) : null;
    const made = layer?.key ? eventsOf(params, layer.key) : (other ?? eventsOf(params, {}));
    return format("events", null, withRange(made, times));
  }

  #narrow(from, to) {
    const { interval, range } = this.question;
    const { starts } = this.read.model;
    const [first, last] = [Math.min(from, to), Math.max(from, to)];
    go(format("explore", null, withRange(current().params, { start: iso(starts[first]), end: iso(step(starts[last], interval, range.zone)) })));
  }

  #hide(name) {
    const params = new URLSearchParams(current().params);
    if (params.has("hide", name)) params.delete("hide", name);
    else params.append("hide", name);
    go(format("explore", null, params), { replace: true });
  }

  #more() {
    return this.#button("Show more groups", () => this.#set("limit", [String(Math.min(1000, this.question.limit * 4))]));
  }

  #button(text, action) {
    const made = el("button", { type: "button", class: "small" }, text);
    made.addEventListener("click", action);
    return made;
  }

  #set(name, values) {
    const params = new URLSearchParams(current().params);
    params.delete(name);
    for (const value of values) params.append(name, value);
    if (name === "group_by" || name === "measures") params.delete("hide");
    go(format("explore", null, params));
  }

  // --- the question ---------------------------------------------------------------------------------------------------

  #pickers(params) {
    const { measures, groups, view, compare, limit } = this.question;
    const select = (label, options, chosen, change) => {
      const made = el("select", { "aria-label": label }, ...options.map(([value, text]) => el("option", { value }, text)));
      made.value = chosen;
      made.addEventListener("change", () => change(made.value));
      return made;
    };
    const offered = [...new Set([...OFFERED, ...measures])].map((name) => [name, measureTitle(name)]);
    const chosenMeasures = measures.map((name, at) => {
      const options = measures.length > 1 ? [...offered, ["", "remove"]] : offered;
      return select(`Measure ${at + 1}`, options, name, (value) => this.#set("measures", measures.map((each, place) => (place === at ? value : each)).filter(Boolean)));
    });
    const more = measures.length < MOST_MEASURES && select("Another measure", [["", "+ measure"], ...offered.filter(([name]) => !measures.includes(name)), ["score", "Score…"]], "", (value) => this.#addMeasure(value));
    const groupOptions = (name) => [...Object.entries(GROUPS), ["tag", "tag…"], ...(name?.startsWith("tag:") ? [[name, shown(name)]] : [])];
    const chosenGroups = groups.map((name, at) => select(`Group ${at + 1}`, [...groupOptions(name), ["", "remove"]], name, (value) => this.#setGroup(groups, at, value)));
    const another = groups.length < 3 && select("Another group", [["", groups.length ? "+ group" : "no group"], ...groupOptions().filter(([name]) => !groups.includes(name))], "", (value) => this.#setGroup(groups, groups.length, value));
    const interval = select("Interval", INTERVALS.map((each) => [each, each === "auto" ? `auto (${this.question.interval})` : each]), params.get("interval") ?? "auto", (value) => this.#set("interval", value === "auto" ? [] : [value]));
    const views = el("span", { class: "segments", role: "group", "aria-label": "Shown as" }, ...Object.entries(VIEWS).map(([name, text]) => {
      const made = el("button", { type: "button", "aria-pressed": String(name === view) }, text);
      made.addEventListener("click", () => this.#set("view", name === "bars" ? [] : [name]));
      return made;
    }));
    const box = el("input", { type: "checkbox" });
    box.checked = compare;
    box.addEventListener("change", () => this.#set("compare", box.checked ? ["1"] : []));
    const limits = select("Groups shown", [5, 10, 25, 100, 1000, limit].filter((each, at, all) => all.indexOf(each) === at).sort((a, b) => a - b).map((each) => [String(each), `at most ${each} groups`]), String(limit), (value) => this.#set("limit", value === "25" ? [] : [value]));
    const focus = document.activeElement?.getAttribute?.("aria-label");
    const had = this.pickers.contains(document.activeElement);
    const scale = view === "grid" ? this.#scale(params) : null;
    this.pickers.replaceChildren(...[...chosenMeasures, more, el("span", { class: "sub" }, "by"), ...chosenGroups, another, interval, views, el("label", { class: "check" }, box, " Previous period"), limits, scale].filter(Boolean));
    if (had && focus) this.pickers.querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus();
  }

  #scale(params) {
    const box = el("input", { type: "checkbox" });
    box.checked = params.get("scale") === "own";
    box.addEventListener("change", () => this.#set("scale", box.checked ? ["own"] : []));
    return el("label", { class: "check" }, box, " Own scales");
  }

  #addMeasure(value) {
    if (value !== "score") return value && this.#set("measures", [...this.question.measures, value]);
    const names = el("datalist", { id: "score-names" });
    const statistic = el("select", { "aria-label": "Statistic of the score" }, ...SCORED.map((word) => el("option", { value: word }, STATISTICS[word])));
    const add = (name) => this.#set("measures", [...this.question.measures, `score:${name}:${statistic.value}`]);
    this.#ask("Name of the score", add, { list: "score-names" }, names, statistic);
    this.#scoreNames().then((found) => names.replaceChildren(...found.map((name) => el("option", { value: name }))));
  }

  /** The names of scores in the range, as the versions of prompts have them; none if they cannot be had. */
  async #scoreNames() {
    const { range } = this.question;
    try {
      const { prompts } = await get("/v1/prompts", [...Object.entries(asked(range)), ...filtersOf(current().params), ["limit", 200]], this.context.signal);
      return [...new Set(prompts.flatMap((row) => Object.keys(row.scores ?? {})))].sort();
    } catch {
      return [];
    }
  }

  #setGroup(groups, at, value) {
    const put = (name) => {
      const made = [...groups.slice(0, at), name, ...groups.slice(at + 1)].filter(Boolean);
      this.#set("group_by", made.length ? [...new Set(made)] : [""]);
    };
    if (value === "tag") this.#ask("Key of the tag", (key) => put(`tag:${escapeKey(key)}`));
    else put(value);
  }

  #ask(label, done, attributes = {}, ...more) {
    const field = el("input", { "aria-label": label, placeholder: label, spellcheck: "false", autocapitalize: "none", ...attributes });
    const form = el("form", { class: "row" }, field, ...more, el("button", { type: "submit" }, "Add"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value) done(field.value);
    });
    this.pickers.append(form);
    field.focus();
  }

  // --- what is kept ---------------------------------------------------------------------------------------------------

  #save() {
    const { question, read, earlier } = this;
    save("explore.csv", csv(exploreCsv(read.model, question, earlier?.answer)), "text/csv");
  }

  #fillSaved(panel) {
    const name = el("input", { "aria-label": "Name of this question", placeholder: "Name of this question" });
    const said = el("p", { class: "hint", role: "status" }, "In this browser only.");
    const form = el("form", { class: "row" }, name, el("button", { type: "submit", class: "primary" }, "Save"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!name.value.trim()) return;
      if (keep(name.value.trim(), location.hash)) this.#fillSaved(panel);
      else write(said, "This browser does not let the page store anything.");
    });
    const items = Object.entries(saved()).map(([text, hash]) => {
      const link = el("a", { href: String(hash).startsWith("#/") ? hash : "#/explore" }, text);
      link.addEventListener("click", () => panel.hidePopover());
      const remove = el("button", { type: "button", "aria-label": `Forget ${text}` }, "×");
      remove.addEventListener("click", () => (forget(text), this.#fillSaved(panel)));
      return el("li", { class: "row" }, link, remove);
    });
    panel.replaceChildren(form, el("ul", { class: "presets" }, ...items), said);
  }
}

const rangeText = ({ start, end }) => `${iso(start).slice(0, 16).replace("T", " ")} to ${iso(end).slice(0, 16).replace("T", " ")} UTC`;
