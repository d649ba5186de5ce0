// One session: its traces in order of time, the gap before each, what each cost and what it came to so far.
import { address, get, Latest, pathOf, request } from "./api.js";
import { cost, duration, idLink, later, picoCost, time, took } from "./cells.js";
import { copyButton } from "./clipboard.js";
import { el, show, write } from "./dom.js";
import { count, counted, percent, pico } from "./exact.js";
import { sharedOf } from "./filters.js";
import { freshness } from "./freshness.js";
import { shown } from "./names.js";
import { busy, problem } from "./notices.js";
import { format } from "./router.js";
import { readSliced } from "./slices.js";
import { eventsWithin, zoneOf } from "./time_range.js";
import { TraceModel } from "./trace_model.js";
import { micros } from "./zone.js";

const STEP = 50;
const STEPS = 5; // of the slowest and dearest steps of a trace

export class SessionView {
  #latest = new Latest();

  constructor(host, context) {
    Object.assign(this, { host, context });
    this.back = el("p");
    this.title = el("h1", { tabindex: "-1" });
    this.facts = el("p", { class: "facts" });
    this.notice = el("div");
    this.rows = el("ol", { class: "session" });
    this.jumps = el("p", { class: "row" });
    this.more = el("button", { type: "button" }, "Show more");
    this.more.addEventListener("click", () => this.#add(STEP));
    this.stamp = el("p", { class: "hint stamp" });
    this.card = el("section", { class: "card", "aria-label": "Traces of the session" }, el("div", { class: "head" }, el("h2", {}, "Traces in order of time"), el("span", { class: "grow" }), this.jumps), this.rows, this.more);
    host.replaceChildren(this.back, this.title, this.facts, this.notice, this.card, this.stamp);
  }

  async update(route, restored) {
    this.route = route;
    this.back.replaceChildren(el("a", { href: format("sessions", null, sharedOf(route.params)) }, "← All sessions"));
    const key = `${route.id}|${route.params.get("tz") ?? ""}`;
    if (this.key === key && restored) return;
    this.key = key;
    write(this.title, shown(route.id));
    document.title = `${shown(route.id)} · spendstream`;
    show(this.card, false);
    this.facts.replaceChildren();
    this.notice.replaceChildren();
    write(this.stamp, "");
    const signal = this.#latest.begin(this.context.signal);
    const done = busy(this.host);
    try {
      if (route.id === "." || route.id === "..") throw Object.assign(new Error(), { status: 404, reason: "not_found" });
      const answer = await get(pathOf("/v1/sessions", route.id), {}, signal);
      this.#show(answer, route);
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error)) return;
      this.key = null;
      if (error.status === 404) error.message = "No session has this id, or it is newer than what the event store contains.";
      this.notice.replaceChildren(problem(error, { retry: () => this.update(route, false), signal }));
    } finally {
      done();
    }
  }

  /** What was read stays for Back; what was not read to its end does not. */
  close() {
    this.#latest.abort();
    if (this.card.hidden) this.key = null;
  }

  #show(answer, route) {
    const session = answer.session ?? answer;
    const shared = sharedOf(route.params);
    const { zone } = zoneOf(route.params);
    this.zone = zone;
    this.total = pico(session.cost_usd);
    this.traces = answer.traces;
    let sum = 0n;
    this.sums = this.traces.map((trace) => (sum += pico(trace.cost_usd)));
    this.shown = 0;
    const parts = [
      time(session.start, zone, "second"),
      el("b", {}, took((micros(session.end) - micros(session.start)) / 1000)),
      el("span", {}, cost(session.cost_usd)),
      `${counted(session.traces, "trace")}, ${counted(session.calls, "call")}`,
      el("span", { class: session.errors === "0" ? "" : "status bad" }, counted(session.errors, "error")),
      session.user_id !== null && el("span", {}, "user ", idLink(session.user_id, format("users", session.user_id, shared))),
      session.models.map(shown).join(", "),
      el("a", { href: format("events", null, eventsWithin(route.params, session, [["session_id", session.session_id], ["kind", "all"]])) }, "its events"),
      copyButton("Copy id", () => session.session_id),
    ];
    this.facts.replaceChildren(...parts.filter(Boolean));
    this.rows.replaceChildren();
    this.notice.replaceChildren(answer.truncated ? el("p", { class: "hint" }, `Only the first ${count(String(this.traces.length))} of ${counted(session.traces, "trace")} are listed; the figures above are those of all.`) : "");
    show(this.card, true);
    this.#add(STEP);
    const dearest = this.traces.reduce((best, trace, at) => (pico(trace.cost_usd) > pico(this.traces[best].cost_usd) ? at : best), 0);
    const jump = (text, at) => {
      const made = el("button", { type: "button", class: "small" }, text);
      made.addEventListener("click", () => this.#jump(at));
      return made;
    };
    this.jumps.replaceChildren(jump("First", 0), jump("Last", this.traces.length - 1), jump("Most expensive", dearest));
    write(this.stamp, freshness(answer, zone));
  }

  #jump(at) {
    if (at >= this.shown) this.#add(at + 1 - this.shown);
    const row = this.rows.children[at];
    row.scrollIntoView({ block: "center" });
    row.querySelector("a").focus({ preventScroll: true });
  }

  #add(size) {
    const to = Math.min(this.traces.length, this.shown + size);
    for (let at = this.shown; at < to; at++) this.rows.append(this.#row(at));
    this.shown = to;
    show(this.more, to < this.traces.length);
    write(this.more, `Show more of ${count(String(this.traces.length - to))}`);
  }

  #row(at) {
    const trace = this.traces[at];
    const before = this.traces[at - 1];
    const ended = before && micros(before.end ?? before.start);
    const gap = before ? later((micros(trace.start) - ended) / 1000) : "the first";
    const link = el("a", { href: format("traces", trace.trace_id, sharedOf(this.route.params)) }, el("bdi", {}, shown(trace.name ?? trace.trace_id)));
    const share = this.total ? Number((pico(trace.cost_usd) * 10_000n) / this.total) / 10_000 : 0;
    const bar = el("span", { class: "share", title: percent(pico(trace.cost_usd), this.total) });
    bar.style.setProperty("--share", `${share * 100}%`);
    const inside = el("div");
    const details = el("details", {}, el("summary", {}, "slowest and dearest steps"), inside);
    details.addEventListener("toggle", () => details.open && !inside.firstChild && this.#steps(trace, inside));
    const errors = trace.errors === "0" ? "" : el("span", { class: "status bad" }, counted(trace.errors, "error"));
    const facts = el("span", { class: "facts" }, time(trace.start, this.zone, "second"), duration(trace.duration_ms), counted(trace.spans, "step"), errors, cost(trace.cost_usd), el("span", { class: "sub" }, "so far ", picoCost(this.sums[at])));
    return el("li", {}, el("span", { class: "sub gap" }, gap), link, bar, facts, details);
  }

  async #steps(trace, place) {
    place.replaceChildren("Reading…");
    try {
      const response = await request(address(pathOf("/v1/traces", trace.trace_id), { extra: "none" }), { signal: this.context.signal });
      const model = new TraceModel();
      await readSliced(response, "spans", (spans) => model.add(spans));
      model.finish();
      const order = (by) => Array.from({ length: model.count }, (_, at) => at).sort(by).slice(0, STEPS);
      const slowest = order((a, b) => model.length[b] - model.length[a]);
      const dearest = order((a, b) => (model.cost[b] > model.cost[a] ? 1 : model.cost[b] < model.cost[a] ? -1 : a - b)).filter((at) => model.cost[at] > 0n);
      const list = (title, steps) => el("div", {}, el("h3", {}, title), el("ul", {}, ...steps.map((at) => el("li", {}, this.#step(trace, model, at)))));
      place.replaceChildren(el("div", { class: "columns" }, list("Slowest", slowest), list("Most expensive", dearest)));
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error)) return;
      place.replaceChildren(problem(error, { retry: () => this.#steps(trace, place), signal: this.context.signal }));
    }
  }

  #step(trace, model, at) {
    const params = sharedOf(this.route.params);
    params.set("event", model.ids[at]);
    const link = el("a", { href: format("traces", trace.trace_id, params) }, el("bdi", {}, shown(model.nameOf(at) || "unnamed")));
    return el("span", { class: "facts" }, link, model.subOf(at) && el("bdi", {}, shown(model.subOf(at))), took(model.length[at] / 1000), picoCost(model.cost[at]));
  }
}
