// The overview and the pages of users: read once a second at most, and followed by the stream of users.
import { get } from "./api.js";
import { Budgets } from "./budgets.js";
import { $, show, write } from "./dom.js";
import { exampleCurl } from "./examples.js";
import { pico } from "./exact.js";
import { shown } from "./names.js";
import { Overview } from "./overview.js";
import { BEGINNING, firstDay } from "./period.js";
import { Person } from "./person.js";
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
  #today = new Date().toISOString().slice(0, 10);
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
  }

  /** Forgets all of a project. */
  stop() {
    this.#session = null;
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

  /** Shows the overview, or a user's page; `params` are what its links keep. */
  show(userId, params) {
    this.#userId = userId;
    this.#overview.keep(params);
    this.#users.keep(params);
    if (userId !== null) this.#person.open(userId, params);
    this.#lastRead = 0;
    this.refresh();
  }

  /** Nothing of it is seen for a while: it does not read. */
  pause() {
    clearTimeout(this.#timer);
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
    try {
      await (this.#userId === null ? this.#readOverview(mine) : this.#readPerson(mine));
      if (mine === this.#session) this.worked();
    } catch (error) {
      if (mine === this.#session) this.failed(error);
    }
    this.#busy = false;
    if (mine === this.#session && this.#session) this.refresh(this.#again ? 0 : this.#link === "live" ? IDLE : ASK);
    else if (this.#session) this.refresh();
  }

  async #readOverview(mine) {
    const period = $("range").value;
    const first = firstDay(period, this.#today);
    const [costs, quota, spent, all] = await Promise.all([
      get("/v1/costs", { start: `${first ?? BEGINNING}T00:00:00Z` }, mine.signal),
      get("/v1/quota", {}, mine.signal),
      get("/v1/budgets", {}, mine.signal),
      everything(mine),
    ]);
    if (mine !== this.#session) return;
    this.#today = costs.asOf.slice(0, 10);
    write($("who"), quota.organization === "default" ? "" : shown(quota.organization));
    write($("as-of"), `As of ${costs.asOf.slice(0, 19).replace("T", " ")} UTC.`);
    this.#sample(pico(all.total.cost_usd));
    const empty = all.total.requests === "0";
    show($("empty"), empty);
    this.#budgets.update(spent);
    this.#overview.update(costs, quota, period, first);
    this.#users.reset(period, first, empty);
    await this.#users.refresh();
    this.#stream(mine, all);
  }

  async #readPerson(mine) {
    const period = $("range").value;
    const [all] = await Promise.all([everything(mine), this.#person.refresh(period, firstDay(period, this.#today))]);
    if (mine === this.#session) this.#stream(mine, all);
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
    this.refresh();
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
function everything(mine) {
  return get("/v1/users", { limit: 1 }, mine.signal);
}
