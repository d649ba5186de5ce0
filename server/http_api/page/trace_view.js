// One trace: its figures, the overview, the tree with the time line, search, and the selected step in full.
import { address, Latest, pathOf, request } from "./api.js";
import { cost, idLink, picoCost, time, took } from "./cells.js";
import { copyButton } from "./clipboard.js";
import { el, show, write } from "./dom.js";
import { EventPane } from "./event_detail.js";
import { count, counted } from "./exact.js";
import { sharedOf } from "./filters.js";
import { freshness } from "./freshness.js";
import { shown } from "./names.js";
import { busy, problem } from "./notices.js";
import { current, format, go } from "./router.js";
import { pause, readSliced } from "./slices.js";
import { eventsWithin, zoneOf } from "./time_range.js";
import { FLAG, TraceModel } from "./trace_model.js";
import { Rows } from "./trace_rows.js";
import { errorsOf, TraceSearch } from "./trace_search.js";
import { TraceStrip } from "./trace_strip.js";
import { TraceTree } from "./trace_tree.js";

const KEYS = [
  ["↑ ↓ Page Home End", "move"], ["→", "open, or the first child"], ["←", "close, or the parent"], ["Enter", "the step in full"], ["Escape", "back to the tree"],
  ["*", "open all siblings"], ["/", "search"], ["n N", "next, previous match"], ["e E", "next, previous error"], ["+ − 0", "zoom in, out, whole"], ["c", "critical path"], ["?", "these keys"],
];

export class TraceView {
  #latest = new Latest();
  #search = new Latest();
  #step = new Latest();
  #found = null;

  constructor(host, context, { neighbours }) {
    Object.assign(this, { host, context, neighbours });
    this.title = el("h1", { tabindex: "-1" });
    this.facts = el("p", { class: "facts" });
    this.notes = el("div");
    this.strip = el("div", { class: "t-strip" });
    this.query = el("input", { type: "search", "aria-label": "Search in this trace", placeholder: "Search in this trace", title: "The browser's own search cannot see rows outside the window: search here", spellcheck: "false", autocapitalize: "none", autocomplete: "off" });
    this.hits = el("span", { class: "sub", role: "status" });
    const button = (text, label, action) => {
      const made = el("button", { type: "button", ...(label && { "aria-label": label }) }, text);
      made.addEventListener("click", action);
      return made;
    };
    this.previous = button("‹", "Previous match", () => this.#walk(-1));
    this.next = button("›", "Next match", () => this.#walk(1));
    this.errorCount = el("span", { class: "sub" });
    this.errorNext = button("Next error", null, () => this.#walkErrors(1));
    this.only = button("Only matches", null, () => this.#set("only", current().params.get("only") ? null : this.#found ? "matches" : "errors"));
    this.critical = button("Critical path", null, () => this.#set("critical", current().params.get("critical") ? null : "1"));
    this.collapse = button("Collapse all", null, () => this.#collapse());
    const help = button("?", "Keys", () => this.keys.showModal());
    this.tools = el("div", { class: "t-tools" }, this.query, this.hits, this.previous, this.next, this.errorCount, this.errorNext, this.only, this.critical, this.collapse, help);
    const treeHost = el("div", { class: "t-tree" });
    this.paneHost = el("aside", { class: "card pane", "aria-label": "The selected step" });
    const closeKeys = button("Close", null, () => this.keys.close());
    this.keys = el("dialog", { "aria-label": "Keys" }, el("h2", {}, "Keys, while the tree has the focus"), el("dl", { class: "keys" }, ...KEYS.flatMap(([key, text]) => [el("dt", {}, key), el("dd", {}, text)])), closeKeys);
    this.body = el("div", { class: "t-body" }, el("section", { class: "card t-card", "aria-label": "Tree of the trace" }, this.strip, this.tools, treeHost), this.paneHost);
    this.loading = el("p", { class: "hint", role: "status" });
    this.stamp = el("p", { class: "hint stamp" });
    this.back = el("p", { class: "row" });
    host.replaceChildren(this.back, this.title, this.facts, this.notes, this.loading, this.body, this.stamp, this.keys);
    this.map = new TraceStrip(this.strip, (from, to) => this.#window(from, to));
    this.tree = new TraceTree(treeHost, {
      onSelect: (at, isOpened) => this.#select(at, isOpened),
      onWindow: (from, to) => this.#window(from, to),
      onKey: (event) => this.#key(event),
    });
    this.pane = new EventPane(this.paneHost, context, { close: () => this.#closePane(), extraParts: (event) => this.#about(event) });
    let typing;
    this.query.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.#set("q", this.query.value || null, true), 150);
    });
    this.query.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.#walk(event.shiftKey ? -1 : 1);
      if (event.key === "Escape") this.tree.grid.focus();
    });
    this.paneHost.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      this.#closePane();
    });
    addEventListener("spendstream:theme", () => this.model && this.map.draw());
  }

  async update(route) {
    this.drawBack(route);
    if (this.id !== route.id) await this.#read(route);
    else this.#apply(route);
  }

  /** Links to the list and its neighbours of this trace. */
  drawBack(route) {
    const { before, after } = this.neighbours(route.id);
    const shared = sharedOf(route.params);
    const list = el("a", { href: format("traces", null, shared) }, "← All traces");
    const link = (text, id) => (id === null ? "" : el("a", { href: format("traces", id, shared) }, text));
    this.back.replaceChildren(list, el("span", { class: "grow" }), link("Previous of the list", before), link("Next of the list", after));
  }

  /** The next `update` reads the trace again. */
  forget() {
    this.id = null;
  }

  /** What was read stays for Back; what was not read to its end does not. */
  close() {
    for (const each of [this.#latest, this.#search, this.#step]) each.abort();
    if (!this.model) this.id = null;
  }

  async #read(route) {
    const { id } = route;
    this.id = id;
    this.model = null;
    show(this.body, false);
    this.notes.replaceChildren();
    this.facts.replaceChildren();
    write(this.stamp, "");
    write(this.title, shown(id));
    const signal = this.#latest.begin(this.context.signal);
    const done = busy(this.host);
    write(this.loading, "");
    const slow = setTimeout(() => write(this.loading, "Reading the trace…"), 300);
    try {
      if (id === "." || id === "..") throw Object.assign(new Error(), { status: 404, reason: "not_found" });
      const model = new TraceModel();
      const response = await request(address(pathOf("/v1/traces", id), { extra: "none" }), { signal });
      const answer = await readSliced(response, "spans", (spans) => model.add(spans));
      await pause();
      model.finish();
      await pause();
      if (signal.aborted) return;
      this.answer = answer;
      this.model = model;
      this.rows = new Rows(model);
      this.searching = new TraceSearch(model);
      this.errors = errorsOf(model);
      this.#facts(route);
      const selected = this.#indexOf(route.params.get("event"));
      this.rows.begin(selected);
      show(this.body, true);
      this.tree.update(model, this.rows, this.#windowOf(route.params));
      this.map.update(model, this.#windowOf(route.params), null);
      this.applied = {}; // until the first search is done, too: a step may be selected meanwhile
      this.#apply(route);
      if (selected < 0) this.tree.activate(0);
      this.tree.grid.focus({ preventScroll: true });
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error)) return;
      this.id = null;
      if (error.status === 404) error.message = "No trace has this id, or it is newer than what the event store contains.";
      this.notes.replaceChildren(problem(error, { retry: () => this.update(route), signal }));
    } finally {
      clearTimeout(slow);
      write(this.loading, "");
      done();
    }
  }

  #facts(route) {
    const { trace, truncated } = this.answer;
    const shared = sharedOf(route.params);
    const { zone } = zoneOf(route.params);
    write(this.title, shown(trace.name ?? trace.trace_id));
    document.title = `${shown(trace.name ?? trace.trace_id)} · spendstream`;
    const unpriced = this.model.unpriced.reduce((sum, each, at) => sum + (this.model.parent[at] < 0 ? each : 0), 0);
    const parts = [
      time(trace.start, zone),
      el("b", { title: `${trace.duration_ms} ms` }, took(trace.duration_ms)),
      el("span", { class: "t-total" }, cost(trace.cost_usd), unpriced ? ` +${unpriced} unpriced` : ""),
      `${counted(trace.spans, "step")}, ${counted(trace.calls, "call")}`,
      el("span", { class: trace.errors === "0" ? "" : "status bad" }, counted(trace.errors, "error")),
      counted(String(BigInt(trace.input_tokens) + BigInt(trace.output_tokens)), "token"),
      trace.user_id !== null && el("span", {}, "user ", idLink(trace.user_id, format("users", trace.user_id, shared))),
      trace.session_id !== null && el("span", {}, "session ", idLink(trace.session_id, format("sessions", trace.session_id, shared))),
      copyButton("Copy link", () => location.href),
      copyButton("Copy id", () => trace.trace_id),
    ];
    this.facts.replaceChildren(...parts.filter(Boolean));
    write(this.stamp, freshness(this.answer, zone));
    const gap = this.model.gap();
    const events = eventsWithin(route.params, trace, [["trace_id", trace.trace_id], ["kind", "all"]]);
    const notes = [
      truncated && el("p", { class: "hint" }, `Only the first ${count(String(this.model.count))} of ${count(this.answer.total)} steps are shown: sums of steps are "at least", those above are whole. `, el("a", { href: format("events", null, events) }, "All events of the trace")),
      trace.complete === false && el("p", { class: "hint" }, "Its first step has not been seen."),
      this.model.roots > 1 && el("p", { class: "hint" }, `${count(String(this.model.roots))} roots.`),
      gap && el("p", { class: "hint" }, `No step runs for ${took((gap[1] - gap[0]) / 1000)}, from ${took(gap[0] / 1000)} after the start on.`),
    ];
    this.notes.replaceChildren(...notes.filter(Boolean));
  }

  /** Brings search, filter, window, critical path and selection to what the address says. */
  async #apply(route) {
    const { params } = route;
    const text = params.get("q") ?? "";
    if (this.query.value !== text && document.activeElement !== this.query) this.query.value = text;
    const selected = params.get("event");
    const window = this.#windowOf(params);
    this.tree.setWindow(window);
    this.map.setWindow(window);
    const critical = params.get("critical") === "1" ? this.model.criticalPath() : null;
    this.critical.setAttribute("aria-pressed", String(Boolean(critical)));
    if (text !== this.applied.text) {
      const signal = this.#search.begin(this.context.signal);
      const found = text ? await this.searching.find(text, signal) : null;
      if (signal.aborted) return;
      this.#found = found;
      this.hit = -1;
    }
    const only = params.get("only");
    const filter = only === "errors" ? this.errors.matches : only === "matches" && this.#found ? this.#found.matches : null;
    if (text !== this.applied.text || only !== this.applied.only) {
      this.rows.filter(filter);
      this.tree.rowsChanged();
    }
    this.only.setAttribute("aria-pressed", String(Boolean(filter)));
    write(this.only, this.#found || only === "matches" ? "Only matches" : "Only errors");
    this.tree.setMarks({ matches: this.#found?.matches, critical });
    this.map.setMatches(this.#found?.matches ?? null);
    this.#say();
    if (selected && selected !== this.applied.selected) {
      const at = this.#indexOf(selected);
      if (at >= 0) {
        if (this.tree.active !== at) this.tree.activate(at, { center: true });
        this.#showPane(at, false);
      }
    } else if (!selected) this.#hidePane();
    this.applied = { text, only, selected };
  }

  #say() {
    const { list } = this.#found ?? { list: null };
    write(this.hits, !list ? "" : list.length ? `${this.hit >= 0 ? `${count(String(this.hit + 1))} of ` : ""}${count(String(list.length))}` : "none");
    show(this.previous, Boolean(list?.length));
    show(this.next, Boolean(list?.length));
    const errors = this.errors.list.length;
    write(this.errorCount, errors ? counted(String(errors), "error") : "no errors");
    show(this.errorNext, errors > 0);
    show(this.only, errors > 0 || Boolean(this.#found));
  }

  #walk(by) {
    const list = this.#found?.list;
    if (!list?.length) return;
    this.hit = this.hit < 0 ? (by > 0 ? 0 : list.length - 1) : (this.hit + by + list.length) % list.length;
    this.#goTo(list[this.hit]);
    this.#say();
  }

  #walkErrors(by) {
    const { list } = this.errors;
    if (!list.length) return;
    const now = this.tree.active;
    const found = by > 0 ? list.find((at) => at > now) ?? list[0] : list.findLast((at) => at < now) ?? list.at(-1);
    this.#goTo(found);
  }

  #goTo(at) {
    this.tree.activate(at, { center: true });
    this.#select(at, false);
  }

  /** A step was selected: the address says so; its pane is shown if it is open, or asked for. */
  #select(at, isOpened) {
    const isOpen = !this.paneHost.hidden;
    if (!isOpened && !isOpen) return;
    this.applied.selected = this.model.ids[at];
    this.#set("event", this.model.ids[at], true);
    this.#showPane(at, isOpened);
  }

  #showPane(at, focus) {
    this.at = at;
    show(this.paneHost, true);
    this.body.classList.add("has-detail");
    clearTimeout(this.later);
    const read = () => this.pane.show(this.model.ids[at], current().params, { signal: this.#step.begin(this.context.signal), focus });
    if (focus) read();
    else this.later = setTimeout(read, 120); // arrows pass many steps
  }

  #hidePane() {
    show(this.paneHost, false);
    this.body.classList.remove("has-detail");
  }

  #closePane() {
    this.#hidePane();
    this.applied.selected = null;
    this.#set("event", null, true);
    this.tree.grid.focus({ preventScroll: true });
  }

  /** What the trace knows of a step beside its event. */
  #about(event) {
    const { model, at } = this;
    if (!model || model.ids[at] !== event.event_id) return [];
    const out = model.outside(at);
    const least = this.answer.truncated ? "at least " : "";
    const rows = [
      ["Self time", took(model.self[at] / 1000), "Own time that no child covers"],
      ["Of the trace", `${((model.length[at] / model.span) * 100).toFixed(1)}%`],
      ["Steps below", count(String(model.size[at] - 1))],
      ["Calls with it and below", `${least}${count(String(model.calls[at]))}`],
      ["Tokens with it and below", `${least}${count(String(model.allTokens[at]))}`],
      ["Errors with it and below", count(String(model.errors[at]))],
    ];
    const lines = rows.flatMap(([name, text, title]) => [el("dt", title ? { title } : {}, name), el("dd", {}, text)]);
    lines.push(el("dt", {}, "Cost with it and below"), el("dd", { class: "t-subtree" }, least, picoCost(model.allCost[at]), model.unpriced[at] ? ` +${model.unpriced[at]} unpriced` : ""));
    const notes = [
      model.has(at, FLAG.orphan) && `Its parent ${shown(model.parentIds?.get(at) ?? "")} has not been seen in this trace.`,
      model.has(at, FLAG.cycle) && "Its ancestors lead back to itself: the circle is cut here.",
      out && `Outside its parent: ${[out[0] && `starts ${took(out[0] / 1000)} before it`, out[1] && `ends ${took(out[1] / 1000)} after it`].filter(Boolean).join(", ")}.`,
    ];
    return [el("section", {}, el("h3", {}, "In the trace"), el("dl", { class: "fields" }, ...lines), ...notes.filter(Boolean).map((text) => el("p", { class: "hint" }, text)))];
  }

  #collapse() {
    const isAll = this.collapse.dataset.closed === "1";
    if (isAll) this.rows.openAll();
    else this.rows.collapseAll();
    this.collapse.dataset.closed = isAll ? "" : "1";
    write(this.collapse, isAll ? "Collapse all" : "Open all");
    this.tree.rowsChanged();
  }

  #indexOf(event) {
    return event && this.model ? this.model.ids.indexOf(event) : -1;
  }

  #windowOf(params) {
    const [from, to] = ["from", "to"].map((name) => Number(params.get(name) ?? Number.NaN) * 1000);
    const { span } = this.model;
    return from >= 0 && to > from ? [Math.min(from, span), Math.min(to, span)] : [0, span];
  }

  #window(from, to) {
    const params = new URLSearchParams(current().params);
    const isWhole = from <= 0 && to >= this.model.span;
    for (const [name, value] of [["from", from], ["to", to]]) {
      if (isWhole) params.delete(name);
      else params.set(name, String(Math.round(value) / 1000));
    }
    go(format("traces", this.id, params), { replace: true });
  }

  #set(name, value, isTyped = false) {
    const params = new URLSearchParams(current().params);
    if (value === null) params.delete(name);
    else params.set(name, value);
    go(format("traces", this.id, params), { replace: isTyped });
  }

  #key({ key }) {
    const actions = {
      "/": () => this.query.focus(),
      n: () => this.#walk(1),
      N: () => this.#walk(-1),
      e: () => this.#walkErrors(1),
      E: () => this.#walkErrors(-1),
      "+": () => this.tree.zoom(0.5),
      "-": () => this.tree.zoom(2),
      0: () => this.#window(0, this.model.span),
      c: () => this.critical.click(),
      "?": () => this.keys.showModal(),
      Escape: () => this.#closePane(),
    };
    actions[key]?.();
    return key in actions;
  }
}
