// Traces: the list, and one trace in place of it.
import { cost, duration, idLink, label, time } from "./cells.js";
import { el, show, write } from "./dom.js";
import { count } from "./exact.js";
import { sharedOf, withOnly } from "./filters.js";
import { ListTable } from "./list_table.js";
import { shown } from "./names.js";
import { Pages } from "./pages.js";
import { current, format, go } from "./router.js";
import { TraceView } from "./trace_view.js";

export const own = ["sort", "event", "q", "only", "from", "to", "critical"];
export const unused = (route, shared) => (route.id === null ? [] : shared.filter((name) => name !== "tz"));

const SORTS = new Set(["start", "duration_ms", "cost_usd", "errors"]);
const sortOf = (params) => (SORTS.has(params.get("sort")) ? params.get("sort") : "start");

export class View {
  constructor(host, context) {
    this.host = host;
    this.title = el("h1", { class: "unseen", tabindex: "-1" }, "Traces");
    this.said = el("p", { class: "sub", role: "status" });
    const pagesHost = el("div");
    this.list = el("section", { class: "card", "aria-label": "List of traces" }, el("div", { class: "head" }, el("h2", {}, "Traces"), this.said), pagesHost);
    this.one = el("div");
    host.replaceChildren(this.title, this.list, this.one);
    this.pages = new Pages(pagesHost, context, {
      view: "traces",
      path: "/v1/traces",
      member: "traces",
      missing: "traces",
      extra: (params) => (sortOf(params) === "start" ? [] : [["sort", sortOf(params)]]),
      table: (place, range, route) => this.#table(place, range, route),
      said: (state) => write(this.said, state?.rows.length ? `${count(String(state.rows.length))} shown` : ""),
    });
    this.trace = new TraceView(this.one, context, { neighbours: (id) => this.#neighbours(id) });
  }

  async update(route, restored, isNew) {
    if ((this.one.hidden || isNew) && !restored) this.trace.forget(); // opened anew: read anew
    show(this.list, route.id === null);
    show(this.title, route.id === null);
    show(this.one, route.id !== null);
    if (route.id !== null) return this.trace.update(route);
    return this.pages.update(route, restored, isNew);
  }

  close() {
    this.trace.close();
  }

  #neighbours(id) {
    const rows = this.pages.state?.rows ?? [];
    const at = rows.findIndex((trace) => trace.trace_id === id);
    return { before: at > 0 ? rows[at - 1].trace_id : null, after: at >= 0 && at + 1 < rows.length ? rows[at + 1].trace_id : null };
  }

  #table(place, range, route) {
    const made = new ListTable(place, "Traces", traceColumns(route.params, range.zone, () => made.rows()), (sort) => {
      const params = new URLSearchParams(current().params);
      if (sort === "start") params.delete("sort");
      else params.set("sort", sort);
      go(format("traces", null, params));
    });
    made.sorted(sortOf(route.params));
    return made;
  }
}

/** The columns of a list of traces; `rows()` is what the bars are measured by. */
export function traceColumns(params, zone, rows) {
  const shared = sharedOf(params);
  const only = (name) => (trace) => format("traces", null, withOnly(params, name, trace[name] ?? ""));
  const user = (trace) => (trace.user_id === null ? label(null) : idLink(trace.user_id, format("users", trace.user_id, shared)));
  const session = (trace) => (trace.session_id === null ? label(null) : idLink(trace.session_id, format("sessions", trace.session_id, shared)));
  const start = (trace) => el("a", { href: format("traces", trace.trace_id, shared) }, time(trace.start, zone, "second"));
  const bar = (trace) => {
    const longest = Math.max(1, ...rows().map((each) => Number(each.duration_ms)), Number(trace.duration_ms));
    const made = el("span", { class: "dur" }, duration(trace.duration_ms));
    made.style.setProperty("--share", `${(Number(trace.duration_ms) / longest) * 100}%`);
    return made;
  };
  const name = (trace) => el("span", {}, label(trace.name ?? trace.trace_id), trace.complete === false ? el("span", { class: "mark" }, " root not seen") : "");
  return [
    { title: "Start", sort: "start", cell: start, class: "time" },
    { title: "Name", cell: name, text: (trace) => trace.name ?? trace.trace_id },
    { title: "Duration", sort: "duration_ms", number: true, cell: bar },
    { title: "Steps", hint: "All steps, and those that are model calls", number: true, wide: true, cell: (trace) => `${count(trace.spans)} / ${count(trace.calls)}` },
    { title: "Errors", sort: "errors", number: true, cell: (trace) => el("span", { class: trace.errors === "0" ? "" : "status bad" }, count(trace.errors)) },
    { title: "Tokens", number: true, wide: true, cell: (trace) => count(String(BigInt(trace.input_tokens) + BigInt(trace.output_tokens))) },
    { title: "Cost", sort: "cost_usd", number: true, cell: (trace) => cost(trace.cost_usd) },
    { title: "User", wide: true, cell: user, text: (trace) => trace.user_id, only: only("user_id") },
    { title: "Session", wide: true, cell: session, text: (trace) => trace.session_id, only: only("session_id") },
    { title: "Models", wide: true, cell: (trace) => trace.models.map(shown).join(", ") || "–" },
  ];
}
