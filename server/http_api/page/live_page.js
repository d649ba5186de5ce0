// The overview and the pages of users: read once a second at most, and followed by the stream of users.
import { get, Latest } from "./api.js";
import { Budgets } from "./budgets.js";
import { $, show, write } from "./dom.js";
import { exampleCurl } from "./examples.js";
import { pico } from "./exact.js";
import { freshness } from "./freshness.js";
import { shown } from "./names.js";
import { busy, problem } from "./notices.js";
import { Overview } from "./overview.js";
import { readCosts, sourceOf } from "./overview_source.js";
import { asList, narrowed } from "./pages.js";
import { Person } from "./person.js";
import { current } from "./router.js";
import { follow } from "./stream.js";
import { Live, Users } from "./users.js";

const STREAMED = 20_000; // users up to which the page follows every row; beyond, it asks
const APART = 1000; // milliseconds between two readings, however much happens
const ASK = 5000; // milliseconds between two readings without a stream
const IDLE = 30_000; // milliseconds after which figures that move with the clock are read again
const MINUTE = 60_000;

export class LivePage {
  #live = new Live();
  #overview = new Overview();
  #budgets = new Budgets();
  #person = new Person();
  #users;
  #session = null; // an AbortController while it is shown
  #userId = null; // whose page is shown; null: the overview
  #source; // what is asked (`sourceOf`)
  #readKey; // what the page shows, and of whom
  #reads = new Latest(); // another question ends the reading of the one before
  #waiting = []; // resolved when the next reading is done
  #samples = []; // what all of it came to, and when: [milliseconds, picodollars]
  #link = "off"; // the stream: "off", "live", "lost", or "none" if this server or project is without
  #busy = false;
  #again = false;
  #lastRead = 0;
  #timer;

  /** `failed(error)` is told what went wrong; `worked()` that reading works. */
  constructor({ failed, worked }) {
    this.failed = failed;
    this.worked = worked;
    this.#users = new Users(this.#live, failed);
    write($("first-event"), exampleCurl());
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
    setInterval(() => this.#session && this.#pace(), 5000);
  }

  /** Begins to read for a session, an AbortController. */
  start(session) {
    this.#session = session;
    [this.#link, this.#lastRead, this.#busy, this.#again] = ["off", 0, false, false];
    [this.#readKey, this.#waiting] = [undefined, []];
  }

  /** Forgets all of a project. */
  stop() {
    this.#session = null;
    $("unanswered").replaceChildren();
    for (const done of this.#waiting.splice(0)) done();
    clearTimeout(this.#timer);
    this.#live.clear();
    this.#users.clear();
    this.#samples = [];
    write($("who"), "");
    write($("as-of"), "");
  }

  get isOn() {
    return this.#session !== null;
  }

  /**
   * Shows the overview, or a user's page; `params` are what its links keep. Resolves when it is there; what is come back
   * to (`restored`) is there already.
   */
  async show(userId, params, restored = false) {
    this.#userId = userId;
    this.#source = sourceOf(params, Date.now(), userId);
    this.#overview.keep(params);
    this.#users.keep(params);
    this.#budgets.keep(params);
    const key = this.#key();
    if (restored && key === this.#readKey && Date.now() - this.#lastRead < IDLE) return this.refresh(IDLE);
    if (userId !== null) this.#person.open(userId, params);
    if (key !== this.#readKey) {
      this.#unanswered(null);
      this.#reads.abort();
    }
    this.#lastRead = 0;
    const read = new Promise((resolve) => this.#waiting.push(resolve));
    const done = busy($(userId === null ? "overview" : "person"));
    this.refresh();
    await read;
    done();
  }

  #key() {
    return JSON.stringify([this.#source.key, this.#userId]);
  }

  /** A question to the event store that was not answered stands in place of the figures; null: it was. */
  #unanswered(error) {
    const route = current();
    const retry = () => this.refresh();
    const card = error && problem(asList(error), { retry, narrow: (how) => narrowed(route, how), signal: this.#session.signal });
    const isSaid = card && $("unanswered").firstChild?.textContent.startsWith(card.firstChild.textContent);
    if (!isSaid) $("unanswered").replaceChildren(...(card ? [card] : []));
    show($("overview"), !card && this.#userId === null);
    show($("person"), !card && this.#userId !== null);
  }

  /** Nothing of it is seen for a while: it does not read, and nothing waits for it. */
  pause() {
    clearTimeout(this.#timer);
    for (const done of this.#waiting.splice(0)) done();
    this.isPaused = true;
  }

  resume() {
    this.isPaused = false;
  }

  redraw() {
    this.#overview.chart.redraw();
    this.#person.chart.redraw();
  }

  /** Reads what is shown; soon, but not more often than `APART`. */
  refresh(wait = 0) {
    if (!this.#session || this.isPaused) return;
    if (this.#busy) {
      this.#again = true;
      return;
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#read(), Math.max(wait, this.#lastRead + APART - Date.now()));
  }

  async #read() {
    if (document.hidden && this.#lastRead) return; // read when somebody looks
    const mine = this.#session;
    [this.#busy, this.#again, this.#lastRead] = [true, false, Date.now()];
    const waiting = this.#waiting.splice(0);
    this.#source = sourceOf(this.#source.params, Date.now(), this.#userId);
    const key = this.#key();
    const isMine = () => mine === this.#session && key === this.#key() && !this.isPaused;
    try {
      const signal = this.#reads.begin(mine.signal);
      await (this.#userId === null ? this.#readOverview(mine, signal, isMine) : this.#readPerson(mine, signal, isMine));
      if (mine === this.#session) this.worked();
      if (isMine()) this.#readKey = key;
    } catch (error) {
      if (mine === this.#session) this.#failed(error, isMine());
    }
    for (const done of waiting) done();
    this.#busy = false;
    if (mine === this.#session && this.#session) this.refresh(this.#again ? 0 : this.#link === "live" ? IDLE : ASK);
    else if (this.#session) this.refresh();
  }

  #failed(error, isMine) {
    if (!isMine || this.#source.isTables || error.status === 401 || error.status === 403 || error.name === "AbortError") return this.failed(error);
    this.#readKey = undefined;
    this.#unanswered(error);
  }

  async #readOverview(mine, signal, isMine) {
    const source = this.#source;
    const [costs, quota, spent, all] = await Promise.all([
      readCosts(source, signal),
      get("/v1/quota", {}, signal),
      get("/v1/budgets", {}, signal),
      everything(signal),
    ]);
    if (!isMine()) return;
    this.#unanswered(null);
    write($("who"), quota.organization === "default" ? "" : shown(quota.organization));
    this.#stamp(costs, source);
    this.#sample(pico(all.total.cost_usd));
    const empty = all.total.requests === "0";
    show($("empty"), empty);
    this.#budgets.update(spent);
    this.#overview.update(costs, quota, source);
    this.#users.reset(source, empty);
    await this.#users.refresh();
    this.#stream(mine, all);
  }

  async #readPerson(mine, signal, isMine) {
    const source = this.#source;
    const [all, user] = await Promise.all([everything(signal), this.#person.refresh(source, signal)]);
    if (!isMine()) return;
    this.#unanswered(null);
    if (user) this.#stamp(user, source);
    this.#stream(mine, all);
  }

  /** Up to when the figures are complete, and whose days they have. */
  #stamp(answer, source) {
    write($("as-of"), source.isTables ? `As of ${answer.asOf.slice(0, 19).replace("T", " ")} UTC.` : freshness(answer, source.zone));
    const zone = source.zone === "UTC" ? "" : ` Days are those of ${source.zone}.`;
    write($("kept"), source.isTables ? "" : `These figures are summed up from the events.${zone} The quota and the budgets are those of everything.`);
    show($("kept"), !source.isTables);
  }

  #sample(cost) {
    const now = Date.now();
    this.#samples.push([now, cost]);
    while (this.#samples.length > 2 && this.#samples[1][0] <= now - MINUTE) this.#samples.shift();
    this.#pace();
  }

  #pace() {
    if (!this.#samples.length) return this.#overview.pace(null);
    const [[then, cost], latest] = [this.#samples[0], this.#samples.at(-1)[1]];
    const age = Date.now() - then;
    this.#overview.pace({ cost: latest - cost, words: age >= MINUTE ? "in the last minute" : "since the page was opened" });
  }

  async #stream(mine, all) {
    const count = Number(all.total.users);
    this.#live.complete = this.#link === "live" && this.#live.size >= count;
    if (this.#link !== "off") return;
    if (count > STREAMED) {
      this.#state("none");
      return;
    }
    this.#link = "lost";
    const changed = (name, body) => mine === this.#session && name !== "error" && this.#changed(name, body.users);
    try {
      await follow("/v1/stream/users", mine.signal, changed, (now) => mine === this.#session && this.#state(now));
    } catch (error) {
      if (mine !== this.#session) return;
      if (error.status === 401 || error.status === 403) return this.failed(error);
      this.#state("none"); // this server has no stream
    }
  }

  #changed(name, rows) {
    if (name === "budget") return this.refresh();
    if (name === "snapshot") this.#live.clear();
    this.#live.apply(rows);
    const id = this.#userId;
    if (id !== null && !rows.some((row) => row.user_id === id)) return;
    if (id === null && this.#users.isLive && !this.isPaused) this.#users.refresh().catch(this.failed);
    this.refresh(this.#source.isTables ? 0 : Math.max(0, this.#lastRead + ASK - Date.now()));
  }

  #state(now) {
    if (now === this.#link && (this.isPaused || !$("live").hidden)) return;
    this.#link = now;
    const texts = { live: "Live", lost: "Connection lost, trying again", none: "Read every 5 seconds" };
    write($("live"), texts[now]);
    $("live").dataset.state = now;
    show($("live"), !this.isPaused);
    if (now !== "live") this.#live.complete = false;
    this.refresh(now === "live" ? 0 : ASK);
  }
}

/** The sums over all users and all time. */
function everything(signal) {
  return get("/v1/users", { limit: 1 }, signal);
}
