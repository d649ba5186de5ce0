// One event in full.
import { address, pathOf, request } from "./api.js";
import { cost, duration, idLink, label, time } from "./cells.js";
import { copyButton, save } from "./clipboard.js";
import { el, write } from "./dom.js";
import { count, cutMember, parse, parseMarked } from "./exact.js";
import { asCurl } from "./examples.js";
import { sharedOf, tagText, withOnly } from "./filters.js";
import { jsonTree, toJson } from "./json_tree.js";
import { shown } from "./names.js";
import { problem } from "./notices.js";
import { statusCell, traceLink } from "./event_columns.js";
import { format } from "./router.js";
import { zoneOf } from "./time_range.js";

const LARGE = 256 * 1024; // characters of unknown fields beyond which they are not taken apart

/**
 * Reads an event: {event, marked, large, path}. Numbers are text; `marked` is the whole as it was sent, but for unknown
 * fields that are too many: then `large` is their JSON. Throws `Failed`.
 */
export async function readEvent(id, signal) {
  if (id === "." || id === "..") throw Object.assign(new Error("No event has this id."), { status: 404, reason: "not_found" });
  const path = address(pathOf("/v1/events", id));
  const text = await (await request(path, { signal })).text();
  const { rest, value } = cutMember(text, "extra");
  const [event, marked] = [parse(rest), parseMarked(rest)];
  for (const each of [event, marked]) for (const name of ["asOf", "lagSeconds", "building", "extra"]) delete each[name];
  const large = value !== null && value.length > LARGE ? value : null;
  if (value !== null && !large) marked.extra = parseMarked(value);
  return { event, marked, large, path };
}

/** The JSON of an event, all of it. */
function wholeText({ marked, large }) {
  const text = toJson(marked);
  return large === null ? text : `${text.slice(0, -2)},\n  "extra": ${large}\n}`;
}

/** The event's parts as elements; links keep what `params` shares. */
export function eventParts(read, params) {
  const { event, marked, large, path } = read;
  const { zone } = zoneOf(params);
  const shared = sharedOf(params);
  const to = (view, name, value) => format(view, null, withOnly(shared, name, value));
  const user = event.user_id ?? null;
  const session = event.session_id ?? null;
  const isCall = event.kind !== "span";
  const groups = [
    ["Identity", [
      ["Event", label(event.event_id), event.event_id],
      ["Trace", idLink(event.trace_id, traceLink(event, params)), event.trace_id, to("events", "trace_id", event.trace_id)],
      ["Span", label(event.span_id), event.span_id],
      event.parent_span_id && ["Parent span", label(event.parent_span_id), event.parent_span_id],
      ["Kind", label(event.kind)],
      event.name && ["Name", label(event.name), event.name, to("events", "name", event.name)],
      ["Provider", label(event.provider), event.provider, to("events", "provider", event.provider)],
      ["Model", label(event.model), event.model, to("events", "model", event.model)],
      ["Operation", label(event.operation)],
      ["User", user === null ? label(null) : idLink(user, format("users", user, shared)), user, user === null ? null : to("events", "user_id", user)],
      ["Session", session === null ? label(null) : idLink(session, format("sessions", session, shared)), session, session === null ? null : to("events", "session_id", session)],
      ["Environment", label(event.environment), event.environment, to("events", "environment", event.environment)],
      event.prompt_hash && ["Prompt", idLink(event.prompt_hash, format("prompts", null, with_(shared, "hash", event.prompt_hash))), event.prompt_hash, to("events", "prompt_hash", event.prompt_hash)],
      ["SDK", label(event.sdk_version)],
    ]],
    ["Outcome", [
      ["Status", statusCell(event)],
      event.error_code && ["Error code", label(event.error_code), event.error_code],
      event.error_message && ["Error message", el("span", { class: "json-text", dir: "auto" }, shown(event.error_message)), event.error_message],
      event.finish_reason && ["Finish reason", label(event.finish_reason)],
    ]],
    isCall && ["Cost", [
      ["Cost", cost(event.cost_usd), event.cost_usd],
      ["Priced by", label(event.cost_source ?? "not priced")],
    ]],
    ["Tokens", ["input", "output", "cached", "cache_write", "reasoning"].map((name) => {
      const value = event[`${name}_tokens`];
      return value !== undefined && value !== null && [name.replace("_", " "), count(value)];
    })],
    ["Timing", [
      ["Start", time(event.timestamp, zone), event.timestamp],
      ["Latency", duration(event.latency_ms), event.latency_ms],
      event.ttft_ms && ["First token", duration(event.ttft_ms), event.ttft_ms],
      ["Streamed", String(event.stream)],
      event.received_at && ["Received", time(event.received_at, zone)],
    ]],
    ["Tags", Object.entries(event.tags ?? {}).map(([key, value]) => [shown(key), label(value), value, to("events", "tag", tagText(key, value))])],
    ["Tools", (event.tools_used ?? []).map((tool) => ["Tool", label(tool), tool, to("events", "tool", tool)])],
    ["Scores", Object.entries(event.eval_scores ?? {}).map(([name, value]) => [shown(name), String(value)])],
  ];
  const sections = groups.filter(Boolean).map(([title, rows]) => section(title, rows.filter(Boolean))).filter(Boolean);
  const extra = large !== null ? largePart(large) : marked.extra && Object.keys(marked.extra).length ? extraPart(marked.extra) : null;
  const buttons = el("p", { class: "row" }, copyButton("Copy id", () => event.event_id), copyButton("Copy JSON", () => wholeText(read)), copyButton("Copy as curl", () => asCurl(path)));
  return [buttons, ...sections, ...(extra ? [extra] : [])];
}

function with_(params, name, value) {
  const made = new URLSearchParams(params);
  made.append(name, value);
  return made;
}

function section(title, rows) {
  if (!rows.length) return null;
  const lines = rows.flatMap(([name, value, copied, only]) => {
    const actions = [only && el("a", { class: "small", href: only, "aria-label": `Only events with this ${title === "Tags" ? `tag ${name}` : name.toLowerCase()}`, title: "Only events with this" }, "=")];
    if (copied !== undefined && copied !== null) actions.push(copyButton("", () => String(copied), { "aria-label": `Copy ${name.toLowerCase()}`, title: "Copy", class: "copy-icon" }));
    return [el("dt", {}, el("bdi", {}, name)), el("dd", {}, value, el("span", { class: "field-actions" }, ...actions.filter(Boolean)))];
  });
  return el("section", {}, el("h3", {}, title), el("dl", { class: "fields" }, ...lines));
}

function extraPart(extra) {
  const tree = el("div", {}, ...Object.entries(extra).slice(0, 100).map(([name, value]) => jsonTree(name, value)));
  const rest = Object.keys(extra).length - 100;
  if (rest > 0) tree.append(jsonTree(`${rest} more`, Object.fromEntries(Object.entries(extra).slice(100))));
  return el("section", {}, el("h3", {}, "Unknown fields"), tree);
}

const KEPT = 30; // events that are remembered for Back: an event never changes

/** Unknown fields that are too many to be taken apart: how they begin, and all of them as a file. */
function largePart(text) {
  const saver = el("button", { type: "button", class: "small" }, `Save all ${text.length.toLocaleString("en-US")} characters`);
  saver.addEventListener("click", () => save("extra.json", text, "application/json"));
  return el("section", {}, el("h3", {}, "Unknown fields"), el("pre", { class: "json-text", tabindex: "0", "aria-label": "How the unknown fields begin" }, `${shown(text.slice(0, 2000))}…`), saver);
}

/** A pane that shows one event after the other; `extraParts(event)` are put above the fields. */
export class EventPane {
  #kept = new Map();

  constructor(host, context, { close, extraParts = () => [] }) {
    Object.assign(this, { host, context, extraParts });
    this.title = el("h2", { tabindex: "-1" });
    this.body = el("div", { class: "event-body" });
    const closer = el("button", { type: "button", class: "quiet", "aria-label": "Close the event" }, "Close");
    closer.addEventListener("click", close);
    this.head = el("div", { class: "head" }, this.title, el("span", { class: "grow" }), closer);
    host.replaceChildren(this.head, this.body);
  }

  async show(id, params, { signal, focus = true } = {}) {
    this.id = id;
    write(this.title, "Event");
    if (focus) this.title.focus({ preventScroll: true });
    try {
      const read = this.#kept.get(id) ?? (await readEvent(id, signal));
      this.#kept.set(id, read);
      if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value);
      if (this.id !== id) return;
      write(this.title, shown(read.event.name ?? `${read.event.operation} ${read.event.model}`));
      this.body.replaceChildren(...this.extraParts(read.event), ...eventParts(read, params));
    } catch (error) {
      if (error.name === "AbortError" || this.context.failed(error) || this.id !== id) return;
      if (error.status === 404) error.message = "No event has this id, or it is newer than what the event store contains.";
      this.body.replaceChildren(problem(error, { retry: () => this.show(id, params, { signal }), signal }));
    }
  }
}

