// A chart over time: stacked bars of what adds up, lines of the rest. uPlot draws; every figure shown is the series' own text.
import { libraryComes } from "./chart_library.js";
import { el, write } from "./dom.js";
import { axisText, coordinate, isAdditive, valueText } from "./measures.js";
import { layers, stacked } from "./series_model.js";
import { intervalText } from "./time_range.js";
import { parts } from "./zone.js";

const LOW = 100; // pixels of a chart's height below which its ticks stand closer

const css = (element, name) => getComputedStyle(element)[name];

/**
 * A chart in a host. `onOpen(start, layer)`: a bar was clicked, or Enter pressed; `onNarrow(from, to)`: indexes of the
 * first and last interval of a range that was dragged over.
 */
export class SeriesChart {
  #plot;
  #at = null;

  constructor(host, { name, onOpen, onNarrow, sync, onLegend }) {
    Object.assign(this, { name, onOpen, onNarrow, sync, onLegend });
    this.stage = el("div", { class: "stage", tabindex: "0", role: "img", "aria-label": name });
    this.when = el("span", { class: "sub when" });
    this.legend = el("ul", { class: "legend" });
    this.reading = el("div", { class: "reading" }, this.when, this.legend);
    host.replaceChildren(this.stage, this.reading);
    this.stage.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(this.stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    addEventListener("spendstream:theme", () => this.redraw());
  }

  /**
   * Draws `measure` of a model. `interval`, `zone`: of its starts; `isStack`: bars on top of each other where the
   * measure adds up; `hidden`: names left out; `open`: the last interval is not over; `ghost`: values before, or null;
   * `height` in pixels; `top`: the end of the y scale, or null.
   */
  update(model, measure, options) {
    Object.assign(this, { model, measure, options: { hidden: new Set(), height: 240, ...options } });
    this.layers = layers(model, measure, this.options.hidden);
    this.isStack = this.options.isStack !== false && isAdditive(measure) && !model.multi.length;
    const all = layers(model, measure);
    this.legend.replaceChildren(...all.map((layer) => this.#item(layer)));
    if (this.isStack && this.layers.length > 1) this.legend.append(el("li", { class: "total" }, el("span", {}, "Total"), el("b")));
    this.#at = null;
    this.#read(null);
    this.redraw();
  }

  redraw() {
    if (!this.model) return;
    this.#plot?.destroy();
    this.#plot = undefined;
    if (libraryComes(() => this.redraw())) return;
    if (!window.uPlot) return write(this.stage, "The chart library is missing beside the page: the table has the same figures.");
    if (!this.stage.clientWidth) return;
    this.stage.replaceChildren();
    const times = this.model.starts.map((start) => start / 1000);
    const drawn = this.isStack ? stacked(this.layers, this.measure) : this.layers.map((layer) => layer.values.map((text) => coordinate(this.measure, text))).reverse();
    const ghost = this.options.ghost ? [this.options.ghost.map((text) => coordinate(this.measure, text))] : [];
    this.#plot = new window.uPlot(this.#options(ghost.length), [times, ...drawn, ...ghost], this.stage);
  }

  #item(layer) {
    const isHidden = this.options.hidden.has(layer.name);
    const swatch = el("i", { class: `swatch s${layer.colour}` });
    const name = el("bdi", {}, layer.name);
    const figure = el("b");
    if (!this.onLegend) return el("li", {}, swatch, name, figure);
    const button = el("button", { type: "button", class: "quiet", "aria-pressed": String(!isHidden), title: isHidden ? "Show" : "Hide" }, swatch, name, " ", figure);
    button.addEventListener("click", () => this.onLegend(layer.name));
    return el("li", {}, button);
  }

  /** The text of an interval at `at`; null: of the whole range. */
  #read(at) {
    const { interval, zone, open } = this.options;
    const start = this.model.starts[at];
    const isOpen = open && at === this.model.starts.length - 1;
    write(this.when, start === undefined ? "" : `${intervalText(start, interval, zone)}${isOpen ? " so far" : ""}`);
    const all = layers(this.model, this.measure);
    all.forEach((layer, index) => {
      const group = this.model.drawn.find((each) => each.name === layer.name);
      const text = start === undefined ? valueText(this.measure, group ? group.values[this.measure] : this.model.rest.sum(this.measure)) : valueText(this.measure, layer.values[at]);
      write(this.legend.children[index].querySelector("b"), text ?? "");
    });
    const sum = this.legend.querySelector(".total b");
    if (sum) write(sum, start === undefined ? valueText(this.measure, this.model.total.values[this.measure]) : this.model.hasTotal ? valueText(this.measure, this.model.total.at(this.measure, at)) : "");
  }

  /** The layer at a height of the cursor, by the exact series' own running sums. */
  #layerAt(at, y) {
    if (!this.isStack) return this.layers[0];
    let sum = 0;
    for (const layer of this.layers) {
      sum += coordinate(this.measure, layer.values[at]);
      if (y <= sum) return layer;
    }
    return null;
  }

  #key(event) {
    const last = this.model ? this.model.starts.length - 1 : -1;
    if (last < 0) return;
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 };
    if (event.key in moves) {
      event.preventDefault();
      const from = this.#at ?? (moves[event.key] > 0 ? -1 : last + 1);
      this.#at = Math.max(0, Math.min(last, from + moves[event.key]));
      this.#read(this.#at);
      this.reading.setAttribute("aria-live", "polite");
      const x = this.#plot?.valToPos(this.model.starts[this.#at] / 1000, "x");
      this.#plot?.setCursor({ left: x, top: 10 });
    } else if (event.key === "Enter" && this.#at !== null) this.onOpen?.(this.#at, null);
    else if (event.key === "Escape") {
      this.#at = null;
      this.#read(null);
    }
  }

  #size() {
    return { width: this.stage.clientWidth, height: this.stage.clientWidth < 500 ? Math.min(190, this.options.height) : this.options.height };
  }

  #options(hasGhost) {
    const { interval, zone, top } = this.options;
    const { starts } = this.model;
    const half = starts.length > 1 ? (starts[1] - starts[0]) / 2000 : 30;
    const faint = css(this.stage, "borderTopColor");
    const axis = { stroke: css(this.when, "color"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const bars = window.uPlot.paths.bars({ size: [0.8, 48, 1], radius: 0, align: 0 });
    const colours = this.layers.map((layer) => this.#colour(layer)).reverse();
    const series = colours.map((colour) =>
      this.isStack ? { fill: colour, width: 0, points: { show: false }, paths: bars } : { stroke: colour, width: 2, spanGaps: false, points: { show: starts.length < 60, size: 5, fill: colour } },
    );
    if (hasGhost) series.push({ stroke: css(this.when, "color"), width: 1.5, dash: [4, 4], points: { show: false } });
    return {
      ...this.#size(),
      legend: { show: false },
      padding: [10, 10, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { x: Boolean(this.onNarrow), y: false, setScale: false }, ...(this.sync && { sync: { key: this.sync } }) },
      select: { show: Boolean(this.onNarrow) },
      scales: { x: { time: true, range: (_, low, high) => [low - half * 1.1, high + half * 1.1] }, y: { range: (_, __, high) => [0, top ?? (high > 0 ? high * 1.08 : 1)] } },
      axes: [
        { ...axis, size: 30, grid: { show: false }, values: (_, at) => at.map((each) => axisTime(each * 1000, interval, zone)), splits: () => splits(starts, this.stage.clientWidth) },
        { ...axis, size: 66, grid: { stroke: faint, width: 1 }, ...(this.options.height < LOW && { space: 16 }), values: (_, at) => at.map((value) => axisText(this.measure, value)) },
      ],
      series: [{}, ...series],
      hooks: {
        setCursor: [(plot) => plot.cursor.idx !== undefined && this.#read(plot.cursor.left < 0 ? this.#at : plot.cursor.idx)],
        setSelect: [(plot) => this.#selected(plot)],
        ready: [(plot) => plot.over.addEventListener("click", (event) => this.#clicked(plot, event))],
      },
    };
  }

  #colour(layer) {
    const item = [...this.legend.querySelectorAll(".swatch")].find((each) => each.classList.contains(`s${layer.colour}`));
    return item ? css(item, "backgroundColor") : css(this.when, "color");
  }

  #clicked(plot, event) {
    const at = plot.cursor.idx;
    if (at === null || at === undefined || this.dragged) return (this.dragged = false);
    const y = plot.posToVal(event.clientY - plot.over.getBoundingClientRect().top, "y");
    this.onOpen?.(at, this.#layerAt(at, y));
  }

  #selected(plot) {
    if (plot.select.width < 8) return;
    this.dragged = true;
    setTimeout(() => (this.dragged = false), 0);
    const [from, to] = [plot.select.left, plot.select.left + plot.select.width].map((x) => plot.posToIdx(x));
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.onNarrow(from, to);
  }
}

/** At most one label per 90 pixels, at beginnings of intervals. */
function splits(starts, width) {
  const every = Math.max(1, Math.ceil(starts.length / Math.max(2, Math.floor(width / 90))));
  return starts.filter((_, at) => at % every === 0).map((start) => start / 1000);
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

function axisTime(at, interval, zone) {
  const [year, month, day, hour, minute] = parts(at, zone);
  const clock = `${String(hour).padStart(2, "0")}:${String(minute).padStart(2, "0")}`;
  if (interval === "month") return `${MONTHS[month - 1]} ${year}`;
  if (interval === "day" || interval === "week") return `${MONTHS[month - 1]} ${day}`;
  return hour === 0 && minute === 0 ? `${MONTHS[month - 1]} ${day}` : clock;
}
