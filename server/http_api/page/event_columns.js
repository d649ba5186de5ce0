// The columns of the list of events: which there are, which are shown, and what each says.
import { cost, duration, idLink, label, time } from "./cells.js";
import { el } from "./dom.js";
import { count } from "./exact.js";
import { sharedOf, withOnly } from "./filters.js";
import { shown } from "./names.js";
import { format } from "./router.js";

export const DEFAULT_COLUMNS = ["name", "model", "user_id", "tokens", "latency_ms", "cost_usd", "status"];

const text = (name, title, more = {}) => ({
  title,
  cell: (event) => label(event[name]),
  text: (event) => event[name],
  filter: (event) => [name, event[name]],
  ...more,
});

/** All columns but the time, by the word in the address. */
export const COLUMNS = {
  name: { title: "Name", cell: (event) => label(event.name ?? event.operation), text: (event) => event.name ?? event.operation, filter: (event) => (event.name ? ["name", event.name] : ["operation", event.operation]) },
  model: text("model", "Model"),
  provider: text("provider", "Provider"),
  operation: text("operation", "Operation"),
  kind: text("kind", "Kind"),
  user_id: text("user_id", "User", { wide: true }),
  session_id: text("session_id", "Session"),
  trace_id: { title: "Trace", cell: (event, params) => idLink(event.trace_id, traceLink(event, params)), text: (event) => event.trace_id, filter: (event) => ["trace_id", event.trace_id] },
  event_id: { title: "Event", cell: (event) => label(event.event_id), text: (event) => event.event_id },
  tokens: { title: "Tokens", hint: "Input and output tokens", number: true, wide: true, cell: (event) => `${tokens(event.input_tokens)} / ${tokens(event.output_tokens)}` },
  cached_tokens: { title: "Cached", number: true, cell: (event) => tokens(event.cached_tokens) },
  latency_ms: { title: "Latency", number: true, cell: (event) => duration(event.latency_ms), wide: true },
  ttft_ms: { title: "First token", number: true, cell: (event) => duration(event.ttft_ms) },
  cost_usd: { title: "Cost", number: true, cell: (event) => (event.kind === "span" ? "–" : cost(event.cost_usd)), text: (event) => event.cost_usd },
  status: { title: "Status", cell: statusCell, filter: (event) => ["status", event.status], text: (event) => event.status },
  error_code: text("error_code", "Error code"),
  finish_reason: text("finish_reason", "Finish reason"),
  environment: text("environment", "Environment"),
  prompt_hash: text("prompt_hash", "Prompt"),
  sdk_version: { title: "SDK", cell: (event) => label(event.sdk_version) },
  tags: { title: "Tags", cell: (event) => Object.entries(event.tags ?? {}).map(([key, value]) => `${shown(key)}: ${shown(value)}`).join(", ") || "–" },
  tools_used: { title: "Tools", cell: (event) => (event.tools_used ?? []).map(shown).join(", ") || "–" },
};

const tokens = (value) => (value === undefined || value === null ? "–" : count(value));

/** "success" or what went wrong, not by colour alone. */
export function statusCell(event) {
  return el("span", { class: event.status === "success" ? "status" : "status bad" }, shown(event.status));
}

/** The address of an event's trace, with the event selected. */
export function traceLink(event, params) {
  const made = sharedOf(params);
  made.set("event", event.event_id);
  return format("traces", event.trace_id, made);
}

/** The chosen columns of an address. */
export function chosen(params) {
  const wanted = params.get("cols")?.split(",").filter((name) => name in COLUMNS);
  return wanted?.length ? wanted : DEFAULT_COLUMNS;
}

/** The columns as ListTable takes them: the time, which is the link to the event, then the chosen ones. */
export function columnsOf(params, zone) {
  const link = (event) => el("a", { href: format("events", event.event_id, params) }, time(event.timestamp, zone));
  const only = (column) => (event) => {
    const [name, value] = column.filter(event);
    return format("events", null, withOnly(params, name, value ?? ""));
  };
  const named = chosen(params).map((name) => ({ ...COLUMNS[name], class: `c-${name}`, cell: (event) => COLUMNS[name].cell(event, params), ...(COLUMNS[name].filter && { only: only(COLUMNS[name]) }) }));
  return [{ title: "Time", cell: link, class: "time" }, ...named];
}
