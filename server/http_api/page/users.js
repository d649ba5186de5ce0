// The most expensive users, and the search among them.
import { Failed, get, getUser } from "./api.js";
import { $, focusLater, show, write } from "./dom.js";
import { count, counted, dollars, pico } from "./exact.js";
import { shown } from "./names.js";
import { shares, tokenText } from "./overview.js";
import { daysAsked, during, usersOfEvents } from "./overview_source.js";
import { format } from "./router.js";
import { Table } from "./table.js";

const STEP = 50; // rows shown at once, and added by "Show more"
const PAGE = 1000; // the most a request gives
const SEARCHED = 20_000; // users a search looks through
const FRESH = 10_000; // milliseconds for which a search uses what it has loaded

export const nameOf = (row) => row.user_id ?? "no user";
export const addressOf = (id, params) => format("users", id, params);

const columns = (kept) => [
  {
    title: "User",
    link: (row) => (row.user_id === null ? { text: "no user", aside: true } : { text: shown(row.user_id), href: addressOf(row.user_id, kept()) }),
  },
  { title: "Spend", money: (row) => row.cost_usd, bar: true, sort: "cost_usd" },
  { title: "Requests", text: (row) => count(row.requests), sort: "requests" },
  { title: "Input", text: (row) => tokenText(row.input_tokens), sort: "input_tokens", wide: true },
  { title: "Output", text: (row) => tokenText(row.output_tokens), sort: "output_tokens", wide: true },
  { title: "Errors", text: (row) => count(row.errors), wide: true },
  { title: "Last seen", text: (row) => row.last_seen?.slice(0, 19).replace("T", " ") ?? "–", sort: "last_seen", wide: true },
];

export class Users {
  #sort = "cost_usd";
  #shown = STEP;
  #text = "";
  #all = null;
  #run = 0;
  #kept = new URLSearchParams();

  /** `live`: all users' rows of all time as the stream gives them, if it does; `onFail` is told what went wrong. */
  constructor(live, onFail) {
    this.live = live;
    this.onFail = onFail;
    this.table = new Table($("users"), "Users", columns(() => this.#kept), (sort) => {
      this.#sort = sort;
      this.#shown = STEP;
      this.#all = null;
      this.#again();
    });
    this.#text = $("search").value.trim(); // typed before this module was there
    let typing;
    $("search").addEventListener("input", (event) => {
      clearTimeout(typing);
      typing = setTimeout(() => {
        this.#text = event.target.value.trim();
        this.#shown = STEP;
        this.#again();
      }, 150);
    });
    $("more").addEventListener("click", () => {
      const first = this.table.body.rows.length;
      this.#shown += STEP;
      const focus = focusLater();
      this.#again().then(() => focus(this.table.body.rows[first]?.querySelector("a")));
    });
  }

  /** The source (`sourceOf`) that was read anew: what was loaded for the search is of no use, nor is "Show more" of another. */
  reset(source, isEmpty) {
    if (this.source?.key !== source.key) this.#shown = STEP;
    [this.source, this.isEmpty] = [source, isEmpty];
    this.#all = null;
  }

  /** What links keep of the address. */
  keep(params) {
    this.#kept = params;
  }

  clear() {
    this.#text = "";
    $("search").value = "";
    this.table.update([], nameOf);
  }

  /** Whether the stream's rows are all this table needs. */
  get isLive() {
    return this.source.isAll && this.live.complete;
  }

  /** Reads and shows; throws `Failed`. A later call makes an earlier one's answer void. */
  async refresh() {
    const run = ++this.#run;
    const found = await this.#find();
    if (run === this.#run) this.#render(found);
  }

  #again() {
    return this.refresh().catch(this.onFail);
  }

  async #find() {
    if (this.isLive) {
      const rows = this.live.sorted(this.#sort);
      return this.#text ? { rows: rows.filter(this.#matches) } : { rows, total: rows.length };
    }
    if (!this.source.isTables) return this.#findInEvents();
    if (!this.#text) {
      const page = await get("/v1/users", { ...this.#query(), limit: Math.min(this.#shown, PAGE) });
      const rows = [...page.users];
      for (let next = page.nextCursor; next && rows.length < this.#shown; ) {
        const further = await get("/v1/users", { ...this.#query(), limit: Math.min(this.#shown - rows.length, PAGE), cursor: next });
        rows.push(...further.users);
        next = further.nextCursor;
      }
      return { rows, total: Number(page.total.users) };
    }
    const all = await this.#load();
    const rows = all.rows.filter(this.#matches);
    return { rows: rows.length || !all.cut ? rows : await this.#exactly(this.#text), cut: all.cut };
  }

  /** Of events come at most a thousand users at once; the search is among them, and for a whole id. */
  async #findInEvents() {
    this.#all ??= await usersOfEvents(this.source, this.#sort);
    const { rows, total, rest } = this.#all;
    const cut = rest !== null;
    if (!this.#text) return { rows, total, rest };
    const found = rows.filter(this.#matches);
    if (found.length || !cut) return { rows: found, cut };
    return { rows: (await usersOfEvents(this.source, this.#sort, this.#text)).rows, cut };
  }

  #query() {
    return { ...daysAsked(this.source), sort: this.#sort };
  }

  #matches = (row) => [nameOf(row), shown(nameOf(row))].some((name) => name.toLowerCase().includes(this.#text.toLowerCase()));

  /** Everybody, as far as a search goes. */
  async #load() {
    if (this.#all && Date.now() - this.#all.at < FRESH) return this.#all;
    const loaded = { rows: [], at: Date.now(), cut: false };
    let cursor;
    do {
      const page = await get("/v1/users", { ...this.#query(), limit: PAGE, cursor });
      loaded.rows.push(...page.users);
      cursor = page.nextCursor ?? undefined;
    } while (cursor && loaded.rows.length < SEARCHED);
    loaded.cut = cursor !== undefined;
    this.#all = loaded;
    return loaded;
  }

  async #exactly(id) {
    try {
      return [await getUser(id, daysAsked(this.source))];
    } catch (error) {
      if (error instanceof Failed && error.status === 404) return [];
      throw error;
    }
  }

  #render({ rows, total, cut, rest }) {
    const first = rows.slice(0, this.#shown);
    this.table.sorted(this.#sort);
    this.table.update(first, (row) => JSON.stringify(row.user_id), shares(first));
    const all = total ?? rows.length;
    const reach = count(String(this.source.isTables ? SEARCHED : this.#all.rows.length));
    const searched = this.#text && cut ? ` among the first ${reach}` : "";
    const found = this.#text ? `${count(String(all))} found` : counted(String(all), "user");
    const others = rest ? `; listed are the first ${reach}, the ${count(String(all - rows.length))} others spent ${dollars(rest.cost_usd)} in ${counted(rest.requests, "request")}` : "";
    write($("users-sub"), `${found}${searched}, ${this.source.words}${others}`);
    show($("users-none"), first.length === 0);
    const where = cut ? `None of the first ${reach} users matches, and none is called exactly that.` : "No user's id contains that.";
    write($("users-none"), this.#text ? where : this.isEmpty ? "No events yet." : `No events ${during(this.source)}: choose a longer range${this.source.isTables ? "" : ", or fewer filters"}.`);
    show($("more"), first.length < (rest ? rows.length : all));
  }
}

/** All users of all time, kept up to date by the stream. */
export class Live {
  complete = false;
  #rows = new Map();

  apply(users) {
    for (const row of users) {
      const key = JSON.stringify(row.user_id);
      if (String(row.requests) === "0") this.#rows.delete(key); // what it was made of is gone
      else this.#rows.set(key, row);
    }
  }

  clear() {
    this.complete = false;
    this.#rows.clear();
  }

  get size() {
    return this.#rows.size;
  }

  /** In the order of GET /v1/users: descending, then by user; no user comes first. */
  sorted(by) {
    const value = by === "last_seen" ? (row) => row.last_seen : by === "cost_usd" ? (row) => (row.pico ??= pico(row.cost_usd)) : (row) => BigInt(row[by]);
    const keyed = [...this.#rows.values()].map((row) => [value(row), row.user_id ?? "", row]);
    keyed.sort((a, b) => (a[0] !== b[0] ? (a[0] < b[0] ? 1 : -1) : a[1] < b[1] ? -1 : 1));
    return keyed.map(([, , row]) => row);
  }
}
