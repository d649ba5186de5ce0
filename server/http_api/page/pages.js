// A list that is read page by page: first page, "Show more", what stands there instead, and what is kept for Back.
import { get, Latest } from "./api.js";
import { el, focusLater, show, write } from "./dom.js";
import { filtersOf, sharedOf } from "./filters.js";
import { freshness, isBuilding } from "./freshness.js";
import { beingBuilt, busy, missingField, noEvents, nothingMatches, problem } from "./notices.js";
import { format, go } from "./router.js";
import { asked, MOST, PRESETS, rangeOf, withRange } from "./time_range.js";
import { iso, millis, timeText } from "./zone.js";

const KEPT = 12; // lists that are remembered for Back
const MOST_ROWS = 1000; // rows of a list in the document
const MONTH = 29 * 86_400_000; // milliseconds: the last 30 days begin at least so long ago

/** The failure of a list: a path that the server does not know means that it has no event store. */
export function asList(error) {
  if (error.status === 404) error.isList = true;
  return error;
}

export class Pages {
  #latest = new Latest();
  #kept = new Map();
  #shown = null; // the signature of what is shown

  /**
   * `path` is read, `member` names the rows in its answer. `table(range)` returns an empty ListTable; `said(state)` is
   * called after each page. `extra(params)`: pairs of the view's own. `missing`: the view whose field may be missing.
   * `size`: rows of a page.
   */
  constructor(host, context, { view, path, member, table, extra = () => [], said = () => {}, missing, size = 50 }) {
    Object.assign(this, { host, context, view, path, member, table, extra, said, missing, size });
    this.place = el("div");
    this.notice = el("div");
    this.more = el("button", { type: "button", class: "more" }, "Show more");
    this.status = el("p", { class: "hint stamp", role: "status" });
    this.more.addEventListener("click", () => this.#further());
    host.replaceChildren(this.notice, this.place, this.more, this.status);
    show(this.more, false);
  }

  /** Shows the list of a route; from memory if it is come back to. */
  async update(route, restored, isNew) {
    const signature = `${sharedOf(route.params)}|${JSON.stringify(this.extra(route.params))}`;
    this.route = route;
    if (signature === this.#shown && (restored || !isNew)) return;
    const known = restored && this.#kept.get(signature);
    this.#shown = signature;
    this.#latest.abort();
    if (known) return this.#restore(known);
    await this.#first(signature);
  }

  get state() {
    return this.#kept.get(this.#shown);
  }

  /** Reads the first page again. */
  again() {
    return this.#first(this.#shown);
  }

  async #first(signature) {
    const range = rangeOf(this.route.params, Date.now());
    const pairs = [...Object.entries(asked(range)), ...filtersOf(this.route.params), ...this.extra(this.route.params)];
    const signal = this.#latest.begin(this.context.signal);
    const done = busy(this.host);
    try {
      const answer = await get(this.path, [...pairs, ["limit", this.size]], signal);
      const state = { pairs, range, rows: [...answer[this.member]], next: answer.nextCursor, answer, expired: answer.expired === true };
      this.#kept.delete(signature);
      this.#kept.set(signature, state);
      if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value);
      this.#restore(state);
      if (!state.rows.length) await this.#whyEmpty(signal);
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error)) return;
      this.#shown = null;
      this.failed(asList(error), signature);
    } finally {
      done();
    }
  }

  failed(error, signature) {
    this.place.replaceChildren();
    show(this.more, false);
    write(this.status, "");
    const narrow = (how) => narrowed(this.route, how);
    const retry = () => {
      this.#shown = signature;
      this.#first(signature);
    };
    this.notice.replaceChildren(problem(error, { retry, narrow, signal: this.context.signal }));
    this.said(null);
  }

  #restore(state) {
    this.notice.replaceChildren();
    this.list = this.table(this.place, state.range, this.route);
    this.list.append(state.rows);
    this.#foot(state);
    show(this.place, state.rows.length > 0);
    this.said(state);
  }

  #foot(state) {
    show(this.more, Boolean(state.next) && state.rows.length < MOST_ROWS);
    const full = state.next && state.rows.length >= MOST_ROWS ? ` ${MOST_ROWS.toLocaleString("en-US")} are shown: narrow the range to see others.` : "";
    const expired = state.expired ? " Retention has deleted some of these meanwhile." : "";
    write(this.status, `${freshness(state.answer, state.range.zone)}${full}${expired}`);
  }

  async #further() {
    const state = this.state;
    const before = state.rows.length;
    const focus = focusLater();
    const done = busy(this.host);
    this.more.disabled = true;
    try {
      const answer = await get(this.path, [...state.pairs, ["limit", this.size], ["cursor", state.next]], this.#latest.begin(this.context.signal));
      state.rows.push(...answer[this.member]);
      state.next = answer.nextCursor;
      state.expired ||= answer.expired === true;
      this.list.append(answer[this.member]);
      this.#foot(state);
      this.said(state);
      focus(this.list.link(before));
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error)) return;
      write(this.status, `The rows after this one could not be read: ${error.message}. `);
      const again = el("button", { type: "button" }, "Read the list anew");
      again.addEventListener("click", () => this.again());
      this.status.append(again);
    } finally {
      this.more.disabled = false;
      done();
    }
  }

  async #whyEmpty(signal) {
    this.notice.replaceChildren(await whyEmpty(this.route, signal, this.missing));
    const first = this.notice.querySelector("[data-waits]");
    if (first) setTimeout(() => !signal.aborted && first.isConnected && this.again(), 3000);
  }
}

/** The card that says why nothing is there: no event at all, none of what the view needs, or none that matches. */
export async function whyEmpty(route, signal, missing) {
  const [any, other] = await Promise.all([
    get("/v1/events", { kind: "all", limit: 1, extra: "none", start: iso(Date.now() - MOST + 60_000) }, signal),
    missing && missing !== "traces" ? get(`/v1/${missing}`, { limit: 1, start: iso(Date.now() - MOST + 60_000) }, signal) : null,
  ]);
  if (!any.events.length) {
    const card = isBuilding(any) ? beingBuilt(freshness(any, rangeOf(route.params, Date.now()).zone)) : noEvents();
    card.dataset.waits = "";
    return card;
  }
  if (other && !other[missing].length) return missingField(missing);
  const { zone, name, start } = rangeOf(route.params, Date.now());
  const longer = start > Date.now() - MONTH ? "30d" : name === "all" ? null : "all";
  const cleared = new URLSearchParams([...route.params].filter(([name]) => !filtersOf(route.params).some(([each]) => each === name)));
  return nothingMatches(`${timeText(millis(any.events[0].timestamp), zone, "second")} ${zone}`, {
    clear: filtersOf(route.params).length ? format(route.view, null, cleared) : null,
    longer: longer && { text: PRESETS[longer], href: format(route.view, null, withRange(route.params, { range: longer })) },
  });
}

/** Goes to a narrower range: half of it, or a start counted back from its end. */
export function narrowed(route, how) {
  const range = rangeOf(route.params, Date.now());
  const start = how.half ? iso(range.start + (range.end - range.start) / 2) : how.start(range.end);
  go(format(route.view, route.id, withRange(route.params, { start, end: range.openEnd ? undefined : iso(range.end) })));
}
