// Sessions: the list, and one session with its traces in order of time.
import { cost, idLink, label, time } from "./cells.js";
import { el, show, write } from "./dom.js";
import { count } from "./exact.js";
import { sharedOf, withOnly } from "./filters.js";
import { ListTable } from "./list_table.js";
import { shown } from "./names.js";
import { Pages } from "./pages.js";
import { current, format, go } from "./router.js";
import { SessionView } from "./session_view.js";

export const own = ["sort"];
export const unused = (route, shared) => (route.id === null ? [] : shared.filter((name) => name !== "tz"));

const SORTS = new Set(["start", "cost_usd", "calls"]);
const sortOf = (params) => (SORTS.has(params.get("sort")) ? params.get("sort") : "start");

export class View {
  constructor(host, context) {
    this.title = el("h1", { class: "unseen", tabindex: "-1" }, "Sessions");
    this.said = el("p", { class: "sub", role: "status" });
    const pagesHost = el("div");
    this.list = el("section", { class: "card", "aria-label": "List of sessions" }, el("div", { class: "head" }, el("h2", {}, "Sessions"), this.said), pagesHost);
    this.one = el("div");
    host.replaceChildren(this.title, this.list, this.one);
    this.pages = new Pages(pagesHost, context, {
      view: "sessions",
      path: "/v1/sessions",
      member: "sessions",
      missing: "sessions",
      size: 25, // a session may have thousands of events, which are added up for its row
      extra: (params) => (sortOf(params) === "start" ? [] : [["sort", sortOf(params)]]),
      table: (place, range, route) => this.#table(place, range, route),
      said: (state) => write(this.said, state?.rows.length ? `${count(String(state.rows.length))} shown` : ""),
    });
    this.session = new SessionView(this.one, context);
  }

  async update(route, restored, isNew) {
    show(this.list, route.id === null);
    show(this.title, route.id === null);
    show(this.one, route.id !== null);
    if (route.id !== null) return this.session.update(route, restored);
    return this.pages.update(route, restored, isNew);
  }

  close() {
    this.session.close();
  }

  #table(place, range, route) {
    const { params } = route;
    const { zone } = range;
    const shared = sharedOf(params);
    const only = (name) => (row) => format("sessions", null, withOnly(params, name, row[name] ?? ""));
    const user = (row) => (row.user_id === null ? label(null) : idLink(row.user_id, format("users", row.user_id, shared)));
    const columns = [
      { title: "Session", cell: (row) => idLink(row.session_id, format("sessions", row.session_id, shared)), text: (row) => row.session_id },
      { title: "Start", sort: "start", cell: (row) => time(row.start, zone, "second"), class: "time" },
      { title: "Last", cell: (row) => time(row.end, zone, "second"), wide: true },
      { title: "User", cell: user, text: (row) => row.user_id, only: only("user_id"), wide: true },
      { title: "Traces", number: true, cell: (row) => count(row.traces), wide: true },
      { title: "Calls", sort: "calls", number: true, cell: (row) => count(row.calls) },
      { title: "Errors", number: true, cell: (row) => el("span", { class: row.errors === "0" ? "" : "status bad" }, count(row.errors)), wide: true },
      { title: "Tokens", number: true, cell: (row) => count(String(BigInt(row.input_tokens) + BigInt(row.output_tokens))), wide: true },
      { title: "Cost", sort: "cost_usd", number: true, cell: (row) => cost(row.cost_usd) },
      { title: "Models", cell: (row) => row.models.map(shown).join(", ") || "–", wide: true },
    ];
    const made = new ListTable(place, "Sessions", columns, (sort) => {
      const wanted = new URLSearchParams(current().params);
      if (sort === "start") wanted.delete("sort");
      else wanted.set("sort", sort);
      go(format("sessions", null, wanted));
    });
    made.sorted(sortOf(params));
    return made;
  }
}
