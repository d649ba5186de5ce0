// The bar under the header: range, zone, environment, filters, find by id. It writes the address, and is drawn from it.
import { get, Latest } from "./api.js";
import { $, el, show, write } from "./dom.js";
import { BOUNDS, FIELDS, filtersOf, isShared, tagText, withFilter, without, words } from "./filters.js";
import { find } from "./find.js";
import { shown } from "./names.js";
import { popover } from "./popover.js";
import { current, format, go } from "./router.js";
import { ALL_TIME, asked, fieldParts, fieldText, PRESETS, rangeOf, withRange, zoneOf } from "./time_range.js";
import { browserZone, instant, iso } from "./zone.js";

const GROUPABLE = new Set(["provider", "model", "operation", "status", "environment", "user_id", "session_id", "prompt_hash", "error_code", "name", "tool"]);
const LISTED = 50; // values offered of a field

const at = (params) => {
  const { view, id } = current();
  return format(view, id, params);
};

/** Goes to the same view with other parameters; a cursor or a selection of the old ones has no meaning any more. */
function apply(params) {
  params.delete("cursor");
  go(at(params));
}

export class Bar {
  #values = new Latest();
  #signal;

  constructor(host) {
    this.host = host;
    this.range = popover("", (panel) => this.#fillRange(panel), { id: "range-button", "aria-label": "Time range" });
    this.zone = el("button", { type: "button", id: "zone" });
    this.zone.addEventListener("click", () => this.#toggleZone());
    this.environment = popover("", (panel) => this.#fillEnvironment(panel), { id: "environment-button" });
    this.chips = el("ul", { class: "chips", "aria-label": "Filters" });
    this.add = popover("Add filter", (panel) => this.#fillFilter(panel), { id: "add-filter" });
    this.note = el("p", { class: "hint", id: "bar-note" });
    const id = el("input", { type: "search", id: "find-id", "aria-label": "Find by id", placeholder: "Find by id", spellcheck: "false", autocapitalize: "none", autocomplete: "off" });
    const finder = el("form", { class: "finder" }, id);
    finder.addEventListener("submit", (event) => {
      event.preventDefault();
      const wanted = id.value.trim();
      if (!wanted) return;
      const empty = () => id.value.trim() === wanted && (id.value = ""); // what was typed since is the next one to look for
      find(wanted, this.#signal, (text) => write(this.note, text)).then((found) => found && empty());
    });
    const parts = [this.range, this.environment, this.add];
    host.replaceChildren(this.range.button, this.zone, this.environment.button, this.chips, this.add.button, finder, this.note, ...parts.map((part) => part.panel));
  }

  /** Draws what `route` says. `unused`: names of shared parameters that the view has no use for; `own`: names the view knows. */
  update({ view, params }, { signal, unused = [], own = [] }) {
    this.#signal = signal;
    this.all = allOf(view, params);
    const range = rangeOf(params, Date.now());
    const { zone, bad } = zoneOf(params);
    write(this.range.button, range.name === "all" ? this.all : range.label);
    write(this.zone, zone === "UTC" ? "UTC" : `${zone}${zone === browserZone() ? " (browser)" : ""}`);
    this.zone.title = zone === "UTC" ? `Days and times are UTC. Switch to the browser's zone, ${browserZone()}` : "Switch to UTC";
    const environments = params.getAll("environment");
    write(this.environment.button, environments.length ? `Environment: ${environments.map(shown).join(" or ") || "absent"}` : "All environments");
    const filters = filtersOf(params).filter(([name]) => name !== "environment");
    this.chips.replaceChildren(...filters.map(([name, value]) => this.#chip(name, value)));
    show(this.chips, filters.length > 0);
    const unknown = [...new Set([...params.keys()].filter((name) => !isShared(name) && !own.includes(name)))];
    const kept = unused.filter((name) => params.has(name));
    const said = [
      bad && `${bad} is no time zone this browser knows: UTC is shown.`,
      kept.length && `Kept, but not used here: ${kept.map(shown).join(", ")}.`,
      unknown.length && `Unknown in this address: ${unknown.map(shown).join(", ")}.`,
    ];
    write(this.note, said.filter(Boolean).join(" "));
  }

  #chip(name, value) {
    const [label, text] = words(name, value);
    const remove = el("button", { type: "button", "aria-label": `Remove the filter ${label} ${shown(text)}` }, "×");
    remove.addEventListener("click", () => {
      apply(without(current().params, name, value));
      this.add.button.focus();
    });
    return el("li", { class: "chip" }, el("span", {}, `${label} `, el("b", {}, el("bdi", {}, shown(text)))), remove);
  }

  #toggleZone() {
    const { params } = current();
    const made = new URLSearchParams(params);
    const name = zoneOf(params).zone === "UTC" ? browserZone() : "UTC";
    if (name === "UTC") made.delete("tz");
    else made.set("tz", name);
    try {
      if (name === "UTC") localStorage.removeItem("spendstream.zone");
      else localStorage.setItem("spendstream.zone", "browser");
    } catch {
      // storage is switched off: the address remembers it
    }
    apply(made);
  }

  #fillRange(panel) {
    const { params } = current();
    const range = rangeOf(params, Date.now());
    const presets = Object.entries(PRESETS).map(([name, text]) => {
      const link = el("a", { href: at(withRange(params, { range: name })), ...(range.name === name && { "aria-current": "true" }) }, name === "all" ? this.all : text);
      link.addEventListener("click", () => panel.hidePopover());
      return el("li", {}, link);
    });
    const field = (name, value) => el("input", { type: "datetime-local", step: "1", id: `range-${name}`, value: fieldText(value, range.zone) });
    const [from, to] = [field("from", range.start), field("to", range.end)];
    const said = el("p", { class: "error", role: "alert" });
    const form = el(
      "form",
      {},
      el("label", { for: "range-from" }, "From"),
      from,
      el("label", { for: "range-to" }, "To (not included)"),
      to,
      el("p", { class: "hint" }, `In ${range.zone}. At most 400 days.`),
      said,
      el("button", { type: "submit", class: "primary" }, "Apply"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const [start, end] = [from, to].map((each) => fieldParts(each.value)).map((fields) => fields && instant(fields, range.zone));
      if (start === null || end === null || end <= start) return write(said, "From has to be before To.");
      panel.hidePopover();
      apply(withRange(current().params, { start: iso(start), end: iso(end) }));
    });
    panel.replaceChildren(el("ul", { class: "presets" }, ...presets), form);
  }

  async #fillEnvironment(panel) {
    const { params } = current();
    const without = new URLSearchParams(params);
    without.delete("environment");
    const choice = (text, made, isChosen) => {
      const link = el("a", { href: at(made), ...(isChosen && { "aria-current": "true" }) }, text);
      link.addEventListener("click", () => panel.hidePopover());
      return el("li", {}, link);
    };
    const list = el("ul", { class: "presets" }, choice("All environments", without, !params.has("environment")));
    panel.replaceChildren(list);
    for (const { value, requests } of await this.#frequent("environment", without)) {
      if (value !== null) list.append(choice(`${shown(value)} · ${requests}`, withFilter(without, "environment", value), params.has("environment", value)));
    }
  }

  /** The most frequent values of a field in the range; nothing if they cannot be had. */
  async #frequent(name, params) {
    const pairs = filtersOf(params).filter(([each]) => each.replace("!", "") !== name);
    const query = [...Object.entries(asked(rangeOf(params, Date.now()))), ...pairs, ["group_by", name], ["measures", "requests"], ["limit", LISTED]];
    try {
      const answer = await get("/v1/metrics", query, this.#values.begin(this.#signal));
      return answer.groups.map((group) => ({ value: group.key[name], requests: group.values.requests }));
    } catch {
      return [];
    }
  }

  #fillFilter(panel) {
    const choice = el("select", { id: "filter-field" }, ...Object.entries({ ...FIELDS, ...BOUNDS }).map(([name, text]) => el("option", { value: name }, text)));
    const key = el("input", { id: "filter-key", spellcheck: "false", autocapitalize: "none", autocomplete: "off" });
    const keyPart = el("div", {}, el("label", { for: "filter-key" }, "Key of the tag"), key);
    const value = el("input", { id: "filter-value", list: "filter-values", spellcheck: "false", autocapitalize: "none", autocomplete: "off" });
    const values = el("datalist", { id: "filter-values" });
    const not = el("input", { type: "checkbox", id: "filter-not" });
    const notPart = el("label", { class: "check" }, not, " exclude it");
    const absent = el("button", { type: "button" }, "Absent");
    const form = el("form", {}, el("label", { for: "filter-field" }, "Field"), choice, keyPart, el("label", { for: "filter-value" }, "Value"), value, values, notPart);
    const take = (text) => {
      const isTag = choice.value === "tag";
      if (isTag && !key.value) return key.focus();
      const name = choice.value in BOUNDS || choice.value === "kind" || !not.checked ? choice.value : `${choice.value}!`;
      panel.hidePopover();
      apply(withFilter(current().params, name, isTag ? tagText(key.value, text) : text));
      this.add.button.focus();
    };
    const changed = async () => {
      show(keyPart, choice.value === "tag");
      show(notPart, !(choice.value in BOUNDS) && choice.value !== "kind");
      show(absent, !(choice.value in BOUNDS) && choice.value !== "kind");
      values.replaceChildren(...(choice.value === "kind" ? ["call", "span", "all"].map((each) => el("option", { value: each })) : []));
      if (!GROUPABLE.has(choice.value)) return;
      const name = choice.value;
      const found = await this.#frequent(name, current().params);
      if (choice.value === name) values.replaceChildren(...found.filter((each) => each.value !== null).map((each) => el("option", { value: each.value }, each.requests)));
    };
    choice.addEventListener("change", changed);
    absent.addEventListener("click", () => take(""));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (value.value) take(value.value);
    });
    form.append(el("div", { class: "row" }, el("button", { type: "submit", class: "primary" }, "Add"), absent));
    panel.replaceChildren(form);
    changed();
  }
}

/** What the longest range is called: the tables of the overview have no bound. */
function allOf(view, params) {
  const isTables = (view === "" || view === "users") && !filtersOf(params).length && zoneOf(params).zone === "UTC";
  return isTables ? ALL_TIME : PRESETS.all;
}

/** The navigation: every view with what all of them share. */
export function drawNavigation(route, shared) {
  const names = { "": "Overview", explore: "Explore", events: "Events", traces: "Traces", sessions: "Sessions", prompts: "Prompts" };
  const here = route.view === "users" ? "" : route.view;
  for (const [view, name] of Object.entries(names)) {
    const id = `nav-${view || "overview"}`;
    const link = $(id) ?? $("views").appendChild(el("a", { id }, name));
    link.setAttribute("href", format(view, null, shared));
    if (view === here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}
