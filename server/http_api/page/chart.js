// Spend by day, stacked by model. uPlot draws; floats are for where a pixel goes, every figure shown is exact.
import { libraryComes } from "./chart_library.js";
import { colourOf } from "./colours.js";
import { el, write } from "./dom.js";
import { decimal, dollars } from "./exact.js";
import { shown } from "./names.js";
import { Table } from "./table.js";

const DAY = 86_400;
const TOP = 7; // models with a colour of their own
const OTHER = "Other models";

/** What `rows` ({day, cost_usd, and what `name` reads}) come to by name, the most expensive first, the rest as one. */
export function stack(rows, name, pico) {
  const sums = new Map();
  const days = new Map();
  const models = new Map();
  for (const row of rows) {
    const of = name(row);
    models.set(of, row.model);
    const cost = pico(row.cost_usd);
    sums.set(of, (sums.get(of) ?? 0n) + cost);
    if (!days.has(row.day)) days.set(row.day, new Map());
    const day = days.get(row.day);
    day.set(of, (day.get(of) ?? 0n) + cost);
  }
  const names = [...sums.keys()].sort((a, b) => (sums.get(b) > sums.get(a) ? 1 : sums.get(b) < sums.get(a) ? -1 : a < b ? -1 : 1));
  const shown = names.length > TOP + 1 ? names.slice(0, TOP) : names;
  const rest = names.slice(shown.length);
  const at = (day, of) => days.get(day)?.get(of) ?? 0n;
  const add = (values) => values.reduce((sum, value) => sum + value, 0n);
  const series = shown.map((of) => ({ name: of, model: models.get(of), total: sums.get(of), value: (day) => at(day, of) }));
  if (rest.length) {
    const total = add(rest.map((of) => sums.get(of)));
    series.push({ name: OTHER, total, value: (day) => add(rest.map((of) => at(day, of))) });
  }
  return series;
}

/** Every day from `first` to `last`, as YYYY-MM-DD. */
export function everyDay(first, last) {
  const days = [];
  for (let at = Date.parse(first); at <= Date.parse(last); at += DAY * 1000) days.push(new Date(at).toISOString().slice(0, 10));
  return days;
}

const MOST = 4000; // days in a row that are drawn

/**
 * The days of a chart from `first` (undefined: the first of `rows`, which have a `day` each, in order) to `last`: every
 * one, or if these are more than can be drawn, those that have events.
 */
export function daysOf(rows, first, last) {
  const from = first ?? rows[0]?.day ?? last;
  const every = (Date.parse(last) - Date.parse(from)) / (DAY * 1000);
  return every < MOST ? everyDay(from, last) : rows.map((row) => row.day);
}

const coarse = (value) => Number(value) / 1e12;
const ticks = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", notation: "compact", maximumSignificantDigits: 3 });

export class Chart {
  #plot;
  #shape = "";
  #days = [];
  #series = [];

  /** `events(day)`: the address of a day's events, if a click is to lead there. */
  constructor(host, caption, events) {
    this.events = events;
    this.stage = el("div", { class: "stage", "aria-hidden": "true" });
    this.when = el("span", { class: "sub when" });
    this.legend = el("ul", { class: "legend" });
    this.tabled = el("div");
    this.caption = caption;
    const details = el("details", {}, el("summary", {}, "Show as a table"), this.tabled);
    details.addEventListener("toggle", () => this.#tabulate());
    this.details = details;
    host.replaceChildren(this.stage, el("div", { class: "reading" }, this.when, this.legend), details);
    new ResizeObserver(() => this.#resize()).observe(this.stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** Days in order and the series of `stack`; `period` is what the sums are said to be of. */
  update(days, series, period) {
    [this.#days, this.#series, this.period] = [days, series, period];
    const used = new Set();
    const items = series.map((each, at) => {
      const item = this.legend.children[at] ?? el("li", {}, el("i", { class: "swatch" }), el("span"), el("b"));
      item.firstChild.className = `swatch s${each.name === OTHER ? "x" : each.model ? colourOf(shown(each.model), used) : at}`;
      write(item.children[1], shown(each.name));
      return item;
    });
    if (this.legend.children.length !== items.length) this.legend.replaceChildren(...items);
    this.#read(null);
    this.#tabulate();
    this.#draw();
  }

  redraw() {
    this.#shape = "";
    this.#draw();
  }

  #read(at) {
    const day = this.#days[at];
    write(this.when, day ?? this.period ?? "");
    this.#series.forEach((each, index) => {
      const item = this.legend.children[index];
      if (item) write(item.lastChild, dollars(decimal(day ? each.value(day) : each.total)));
    });
  }

  #draw() {
    if (libraryComes(() => this.#draw())) return;
    if (!window.uPlot) {
      write(this.stage, "The chart library is missing beside the page: the table below has the same figures.");
      this.details.open = true;
      return;
    }
    if (!this.stage.clientWidth) return;
    const times = this.#days.map((day) => Date.parse(day) / 1000);
    const isLong = times.at(-1) - times[0] > 1500 * DAY;
    const shape = [isLong, ...this.#series.map((each) => each.name)].join("\n");
    const tops = this.#days.map(() => 0n);
    const layers = this.#series.map((each) => this.#days.map((day, at) => coarse((tops[at] += each.value(day)))));
    const data = [times, ...layers.reverse()]; // the tallest first: each next one is drawn over it
    if (this.#plot && shape === this.#shape) {
      this.#plot.setData(data);
      return;
    }
    this.#plot?.destroy();
    this.#shape = shape;
    this.#plot = new window.uPlot(this.#options(isLong), data, this.stage);
  }

  #options(isLong) {
    const colour = (element, name) => getComputedStyle(element)[name];
    const swatches = [...this.legend.children].map((item) => colour(item.firstChild, "backgroundColor")).reverse();
    const faint = colour(this.stage, "borderTopColor");
    const axis = { stroke: colour(this.when, "color"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    return {
      ...this.#size(),
      tzDate: (at) => window.uPlot.tzDate(new Date(at * 1000), "UTC"),
      legend: { show: false },
      padding: [10, 10, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: {
        x: { time: true, range: (_, low, high) => [low - DAY * 0.6, high + DAY * 0.6] },
        y: { range: (_, __, high) => [0, high > 0 ? high * 1.08 : 1] },
      },
      axes: [
        isLong
          ? { ...axis, size: 30, grid: { show: false }, splits: (_, __, low, high) => years(low, high), values: (_, at) => at.map((each) => iso(each).slice(0, 4)) }
          : { ...axis, size: 30, grid: { show: false }, incrs: STEPS.map((days) => days * DAY), values: (_, at) => at.map(at.at(-1) - at[0] > 330 * DAY ? month : short) },
        { ...axis, size: 62, grid: { stroke: faint, width: 1 }, values: (_, at) => at.map((value) => ticks.format(value)) },
      ],
      series: [
        {},
        ...swatches.map((fill) => ({ fill, width: 0, points: { show: false }, paths: window.uPlot.paths.bars({ size: [0.72, 48, 2], radius: 0 }) })),
      ],
      hooks: { setCursor: [(plot) => this.#read(plot.cursor.idx)], ready: [(plot) => plot.over.addEventListener("click", () => this.#open(plot.cursor.idx))] },
    };
  }

  #open(at) {
    const day = this.#days[at];
    if (day && this.events) location.hash = this.events(day);
  }

  #size() {
    return { width: this.stage.clientWidth, height: this.stage.clientWidth < 500 ? 190 : 260 };
  }

  #resize() {
    if (this.#plot) this.#plot.setSize(this.#size());
    else if (this.#series.length) this.#draw();
  }

  #tabulate() {
    if (!this.details.open) return;
    const names = this.#series.map((each) => each.name).join("\n");
    if (names !== this.tabledNames) {
      const columns = this.#series.map((each, at) => ({ title: shown(each.name), money: (day) => decimal(this.#series[at].value(day)) }));
      this.table = new Table(this.tabled, this.caption, [this.events ? { title: "Day", link: (day) => ({ text: day, href: this.events(day) }) } : { title: "Day", text: (day) => day }, ...columns]);
      this.tabledNames = names;
    }
    this.table.update([...this.#days].reverse(), (day) => day);
  }
}

const STEPS = [1, 2, 7, 14, 30, 91, 182, 365]; // days

const iso = (at) => new Date(at * 1000).toISOString();

/** The beginnings of at most ten years between two instants in seconds, as far apart as is needed for that. */
export function years(low, high) {
  const [first, last] = [low, high].map((at) => new Date(at * 1000).getUTCFullYear());
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((each) => (last - first) / each <= 9);
  const found = [];
  for (let year = Math.ceil((first + 1) / step) * step; year <= last; year += step)
    found.push(Date.parse(`${String(year).padStart(4, "0")}-01-01`) / 1000);
  return found;
}

const month = (at) => iso(at).slice(0, 7);

function short(at) {
  return new Date(at * 1000).toLocaleDateString("en-US", { month: "short", day: "numeric", timeZone: "UTC" });
}
