// Events: a histogram, the list, one event in full beside it, and the live tail.
import { address, Latest } from "./api.js";
import { el, focusLater, show, write } from "./dom.js";
import { EventPane } from "./event_detail.js";
import { chosen, COLUMNS, columnsOf, DEFAULT_COLUMNS } from "./event_columns.js";
import { asCurl } from "./examples.js";
import { copyButton } from "./clipboard.js";
import { count } from "./exact.js";
import { exporter } from "./export.js";
import { filtersOf } from "./filters.js";
import { ListTable } from "./list_table.js";
import { readMetrics } from "./metrics_read.js";
import { isLasting } from "./notices.js";
import { Pages } from "./pages.js";
import { popover } from "./popover.js";
import { current, format, go } from "./router.js";
import { SeriesChart } from "./series_chart.js";
import { LiveTail } from "./live_tail.js";
import { asked, intervalOf, rangeOf, withRange } from "./time_range.js";
import { iso, step } from "./zone.js";

const BARS = 180;

export const own = ["cols", "live", "order"];
export const unused = () => [];

const orderOf = (params) => (params.get("order") === "asc" ? [["order", "asc"]] : []);

export class View {
  #histogram = new Latest();
  #drawn = null;
  #opened = new Latest();

  constructor(host, context) {
    Object.assign(this, { host, context });
    this.title = el("h1", { tabindex: "-1", class: "unseen" }, "Events");
    this.said = el("p", { class: "sub", role: "status" });
    this.columns = popover("Columns", (panel) => this.#fillColumns(panel));
    this.live = el("button", { type: "button", "aria-pressed": "false" }, "Live");
    this.live.addEventListener("click", () => this.#toggleLive());
    this.order = el("button", { type: "button" }, "Newest first");
    this.order.addEventListener("click", () => this.#set("order", current().params.get("order") === "asc" ? null : "asc"));
    const curl = copyButton("Copy as curl", () => asCurl(this.#address()), { class: "" });
    this.export = exporter(() => this.#pairs(), () => this.context.signal);
    const chart = el("div", { class: "histogram" });
    this.chartCard = el("section", { class: "card", "aria-label": "Requests over time" }, chart);
    this.chart = new SeriesChart(chart, { name: "Requests by status over time", onOpen: (at) => this.#narrow(at, at), onNarrow: (from, to) => this.#narrow(from, to) });
    this.tailHost = el("div");
    const pagesHost = el("div");
    this.listCard = el("section", { class: "card", "aria-label": "List of events" }, el("div", { class: "head" }, el("h2", {}, "Events"), this.said, el("span", { class: "grow" }), this.live, this.order, this.columns.button, this.export.button, curl), this.columns.panel, this.export.panel, this.tailHost, pagesHost);
    this.paneHost = el("aside", { class: "card pane", "aria-label": "One event" });
    const body = el("div", { class: "beside" }, this.listCard, this.paneHost);
    host.replaceChildren(this.title, this.chartCard, body);
    this.pages = new Pages(pagesHost, context, {
      view: "events",
      path: "/v1/events",
      member: "events",
      extra: (params) => [...orderOf(params), ["extra", "none"]],
      table: (place, range, route) => this.#table(place, range, route),
      said: (state) => this.#said(state),
    });
    this.pane = new EventPane(this.paneHost, context, { close: () => this.#close(), extraParts: () => [this.#neighbours()] });
    this.tail = new LiveTail(this.tailHost, context, { table: (place) => this.#table(place, rangeOf(current().params, Date.now()), current()) });
    this.host.addEventListener("keydown", (event) => event.key === "Escape" && current().id !== null && !event.defaultPrevented && this.#close());
  }

  async update(route, restored, isNew) {
    const isLive = route.params.get("live") === "1" && route.id === null;
    const columns = chosen(route.params).join();
    const drawn = this.columnsShown !== undefined && this.columnsShown !== columns;
    this.columnsShown = columns;
    this.live.setAttribute("aria-pressed", String(isLive));
    write(this.order, route.params.get("order") === "asc" ? "Oldest first" : "Newest first");
    this.host.classList.toggle("has-detail", route.id !== null);
    show(this.paneHost, route.id !== null);
    show(this.pages.host, !isLive);
    show(this.chartCard, !isLive);
    show(this.order, !isLive);
    if (isLive) {
      write(this.said, "");
      this.tail.start(filtersOf(route.params));
    } else this.tail.stop();
    const reads = [];
    if (route.id !== null) reads.push(this.pane.show(route.id, route.params, { signal: this.#opened.begin(this.context.signal), focus: !restored }));
    else this.pane.id = null;
    if (!isLive) reads.push(this.pages.update(route, restored, isNew), this.#histogramOf(route, restored, isNew));
    if (drawn && this.pages.state) this.#redraw(route);
    await Promise.all(reads);
    this.#mark(route.id);
  }

  close() {
    this.tail.stop();
    this.#histogram.abort();
    this.#opened.abort();
  }

  get table() {
    return this.pages.list;
  }

  #table(place, range, route) {
    const made = new ListTable(place, "Events", columnsOf(route.params, range.zone));
    made.table.classList.toggle("stacked", chosen(route.params) === DEFAULT_COLUMNS);
    this.zone = range.zone;
    return made;
  }

  #redraw(route) {
    const { range, rows } = this.pages.state;
    this.pages.list = this.#table(this.pages.place, range, route);
    this.pages.list.append(rows);
  }

  #said(state) {
    if (!state) return write(this.said, "");
    const { total } = state.answer;
    write(this.said, state.rows.length === 0 ? "" : total === null || total === undefined ? "more than 1,000,000" : `${count(total)} in all, ${count(String(state.rows.length))} shown`);
    this.#mark(current().id);
  }

  #mark(id) {
    this.pages.list?.mark((event) => event.event_id === id);
  }

  #address() {
    const { params, id } = current();
    if (id !== null) return `/v1/events/${encodeURIComponent(id)}`;
    return address("/v1/events", this.pages.state?.pairs ?? filtersOf(params));
  }

  /** What an export asks: the range and the filters of the list. */
  #pairs() {
    const { params } = current();
    return [...Object.entries(asked(this.pages.state?.range ?? rangeOf(params, Date.now()))), ...filtersOf(params)];
  }

  async #histogramOf(route, restored, isNew) {
    const key = JSON.stringify([...filtersOf(route.params), route.params.get("range"), route.params.get("start"), route.params.get("end"), route.params.get("tz")]);
    if (key === this.#drawn && (restored || !isNew)) return;
    this.#drawn = key;
    const range = rangeOf(route.params, Date.now());
    const interval = intervalOf(range, BARS);
    try {
      const { model } = await readMetrics(route.params, range, { measures: ["requests"], groups: ["status"], interval, limit: 8 }, this.#histogram.begin(this.context.signal));
      this.drawnRange = { range, interval, starts: model.starts };
      show(this.chartCard, model.groups.length > 0 && !this.tail.running);
      this.chart.update(model, "requests", { interval, zone: range.zone, open: range.openEnd, height: 130 });
    } catch (error) {
      if (this.#drawn === key) this.#drawn = null;
      if (error.name === "AbortError") return;
      if (!this.context.failed(error) && !isLasting(error)) show(this.chartCard, false);
      else show(this.chartCard, false);
    }
  }

  #narrow(from, to) {
    const { interval, starts, range } = this.drawnRange;
    const start = starts[Math.min(from, to)];
    const end = step(starts[Math.max(from, to)], interval, range.zone);
    go(format("events", null, withRange(current().params, { start: iso(start), end: iso(end) })));
  }

  #set(name, value) {
    const { id, params } = current();
    const made = new URLSearchParams(params);
    if (value === null) made.delete(name);
    else made.set(name, value);
    go(format("events", name === "live" ? null : id, made));
  }

  #toggleLive() {
    this.#set("live", current().params.get("live") === "1" ? null : "1");
  }

  #fillColumns(panel) {
    const now = chosen(current().params);
    const boxes = Object.entries(COLUMNS).map(([name, column]) => {
      const box = el("input", { type: "checkbox", value: name });
      box.checked = now.includes(name);
      box.addEventListener("change", () => {
        const wanted = Object.keys(COLUMNS).filter((each) => panel.querySelector(`input[value="${each}"]`).checked);
        this.#set("cols", wanted.join() === DEFAULT_COLUMNS.join() || !wanted.length ? null : wanted.join());
      });
      return el("label", { class: "check" }, box, ` ${column.title}`);
    });
    panel.replaceChildren(el("fieldset", { class: "boxes" }, el("legend", {}, "Columns"), ...boxes));
  }

  #close() {
    const { params, id } = current();
    const at = this.pages.list?.rows().findIndex((event) => event.event_id === id) ?? -1;
    if (this.context.cameFromList()) history.back();
    else go(format("events", null, params));
    const focus = focusLater();
    setTimeout(() => focus(this.pages.list?.link(at)), 50);
  }

  #neighbours() {
    const rows = this.pages.list?.rows() ?? [];
    const at = rows.findIndex((event) => event.event_id === this.pane.id);
    const link = (title, other) => {
      if (!other) return el("span", { class: "none" }, title);
      const made = el("a", { href: format("events", other.event_id, current().params) }, title);
      made.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        go(format("events", other.event_id, current().params), { replace: true });
      });
      return made;
    };
    return at < 0 ? "" : el("p", { class: "row" }, link("Previous of the list", rows[at - 1]), link("Next of the list", rows[at + 1]));
  }
}

