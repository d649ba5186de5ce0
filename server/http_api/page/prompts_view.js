// Prompts: versions by their hash; two to four of them beside each other.
import { Latest } from "./api.js";
import { cost, duration, label, short, time } from "./cells.js";
import { el, show, write } from "./dom.js";
import { count } from "./exact.js";
import { withOnly, sharedOf } from "./filters.js";
import { ListTable } from "./list_table.js";
import { Pages } from "./pages.js";
import { Comparison } from "./prompt_comparison.js";
import { current, format, go } from "./router.js";
import { readMetrics } from "./metrics_read.js";

export const own = ["hash", "base", "sort"];
export const unused = () => [];

const MOST = 4;
const SCORES = 3; // shown of a version in the list

export class View {
  #names = new Latest();

  constructor(host, context) {
    Object.assign(this, { host, context });
    this.title = el("h1", { class: "unseen", tabindex: "-1" }, "Prompts");
    this.said = el("p", { class: "sub", role: "status" });
    this.comparisonHost = el("section", { class: "card", "aria-label": "Versions beside each other" });
    const pagesHost = el("div");
    this.list = el("section", { class: "card", "aria-label": "List of versions" }, el("div", { class: "head" }, el("h2", {}, "Versions"), this.said), pagesHost);
    host.replaceChildren(this.title, this.comparisonHost, this.list);
    this.comparison = new Comparison(this.comparisonHost, context);
    this.pages = new Pages(pagesHost, context, {
      view: "prompts",
      path: "/v1/prompts",
      member: "prompts",
      missing: "prompts",
      extra: () => [["sort", "first_seen"]],
      table: (place, range, route) => this.#table(place, range, route),
      said: (state) => this.#said(state),
    });
  }

  async update(route, restored, isNew) {
    const hashes = route.params.getAll("hash").slice(0, MOST);
    show(this.comparisonHost, hashes.length > 1);
    const reads = [this.pages.update(route, restored, isNew)];
    if (hashes.length > 1) reads.push(this.comparison.update(route, hashes, route.params.get("base") ?? hashes[0]));
    else this.comparison.clear();
    this.#boxes(hashes);
    await Promise.all(reads);
    this.#boxes(current().params.getAll("hash").slice(0, MOST)); // others may have been ticked since
  }

  close() {
    this.#names.abort();
    this.comparison.clear();
  }

  #boxes(hashes) {
    for (const box of this.list.querySelectorAll("input[type=checkbox]")) {
      box.checked = hashes.includes(box.value);
      box.disabled = !box.checked && hashes.length >= MOST;
    }
  }

  #table(place, range, route) {
    const { params } = route;
    const { zone } = range;
    this.nameCells = new Map();
    const tick = (row) => {
      const box = el("input", { type: "checkbox", value: row.prompt_hash ?? "", "aria-label": `Compare ${row.prompt_hash ?? "none"}` });
      box.addEventListener("change", () => this.#tick(row.prompt_hash, box.checked));
      const events = el("a", { href: format("events", null, withOnly(sharedOf(params), "prompt_hash", row.prompt_hash ?? "")) }, label(row.prompt_hash ?? "no hash"));
      return el("span", { class: "row tight" }, row.prompt_hash === null ? "" : box, events);
    };
    const name = (row) => {
      const made = el("span", { class: "sub" });
      this.nameCells.set(row.prompt_hash, made);
      return made;
    };
    const spread = (field, word) => (row) => duration(row[field]?.[word] ?? null);
    const columns = [
      { title: "Version", cell: tick, text: (row) => row.prompt_hash, class: "version" },
      { title: "Name", cell: name, hint: "The most frequent name of its events", wide: true },
      { title: "First used", cell: (row) => (row.first_seen ? time(row.first_seen, zone, "minute") : "–"), wide: true },
      { title: "Last used", cell: (row) => (row.last_seen ? time(row.last_seen, zone, "minute") : "–"), wide: true },
      { title: "Requests", number: true, cell: (row) => count(row.requests) },
      { title: "Per request", number: true, cell: (row) => perRequest(row) },
      { title: "Latency p50", number: true, cell: spread("latency_ms", "p50"), wide: true },
      { title: "p95", number: true, cell: spread("latency_ms", "p95"), wide: true },
      { title: "Errors", number: true, cell: (row) => (row.error_rate === null ? "–" : `${(Number(row.error_rate) * 100).toFixed(1)}%`) },
      { title: "Scores", cell: scores, wide: true },
    ];
    return new ListTable(place, "Versions", columns);
  }

  #said(state) {
    write(this.said, state?.rows.length ? `${count(String(state.rows.length))} shown, newest first; tick 2 to 4 to compare` : "");
    if (state?.rows.length) this.#nameThem(state);
    this.#boxes(current().params.getAll("hash"));
  }

  /** The most frequent name of each version's events. */
  async #nameThem(state) {
    try {
      const { answer } = await readMetrics(current().params, state.range, { measures: ["requests"], groups: ["prompt_hash", "name"], limit: 500 }, this.#names.begin(this.context.signal));
      const seen = new Set();
      for (const { key } of answer.groups) {
        if (seen.has(key.prompt_hash) || key.name === null) continue;
        seen.add(key.prompt_hash);
        const cell = this.nameCells.get(key.prompt_hash);
        if (cell) cell.replaceChildren(label(key.name));
      }
    } catch {
      // the list stands without names
    }
  }

  #tick(hash, isOn) {
    const params = new URLSearchParams(current().params);
    if (isOn) params.append("hash", hash);
    else {
      params.delete("hash", hash);
      if (params.get("base") === hash) params.delete("base");
    }
    go(format("prompts", null, params));
  }
}

/** Cost per request: the mean of those that have a price, as the comparison has it. */
function perRequest(row) {
  const mean = row.cost?.avg ?? null;
  return mean === null ? "–" : cost(mean);
}

function scores(row) {
  const found = Object.entries(row.scores ?? {}).filter(([, spread]) => spread.avg !== null);
  const parts = found.slice(0, SCORES).map(([name, spread]) => el("span", { class: "score", title: `mean ${spread.avg} of ${spread.count}` }, label(name), ` ${short(spread.avg)} `));
  return parts.length ? el("span", {}, ...parts, found.length > SCORES ? `and ${found.length - SCORES} more` : "") : "–";
}
