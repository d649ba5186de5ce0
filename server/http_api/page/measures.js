// The measures of /v1/metrics: what each is called, whether it adds up, and how its values are written.
import { took } from "./cells.js";
import { count, decimal, dollars, pico } from "./exact.js";
import { timeText, millis } from "./zone.js";

const COUNTS = { requests: "Requests", errors: "Errors", unpriced: "Unpriced requests", input_tokens: "Input tokens", output_tokens: "Output tokens", cached_tokens: "Cached tokens", cache_write_tokens: "Cache write tokens", reasoning_tokens: "Reasoning tokens" };
const DISTINCT = { users: "Users", traces: "Traces", sessions: "Sessions" };
export const STATISTICS = { avg: "mean", sd: "standard deviation", p50: "median", p90: "90th percentile", p95: "95th percentile", p99: "99th percentile", count: "count" };

/** What can be asked of a score. */
export const SCORED = ["avg", "sd", "p50", "p95", "count"];

/** Measures to choose from; scores are named by the person who asks. */
export const OFFERED = [
  "cost_usd", "requests", "errors", "error_rate", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "unpriced", "users", "traces", "sessions",
  "latency_ms:p50", "latency_ms:p90", "latency_ms:p95", "latency_ms:p99", "latency_ms:avg", "ttft_ms:p50", "ttft_ms:p95", "cost_usd:avg", "tokens_per_second", "first_seen", "last_seen",
];

/** Whether groups and intervals add up to the total. */
export const isAdditive = (name) => name === "cost_usd" || name in COUNTS;

/** Whether a chart can be made of it. */
export const isDrawn = (name) => name !== "first_seen" && name !== "last_seen";

/** What a measure is called, for people. */
export function measureTitle(name) {
  if (name === "cost_usd") return "Cost";
  if (name === "error_rate") return "Error rate";
  if (name === "tokens_per_second") return "Output tokens per second";
  if (name === "first_seen") return "First seen";
  if (name === "last_seen") return "Last seen";
  if (name in COUNTS || name in DISTINCT) return COUNTS[name] ?? DISTINCT[name];
  const [, field, statistic] = /^(.*):(\w+)$/s.exec(name) ?? [null, name, ""];
  const what = field === "latency_ms" ? "Latency" : field === "ttft_ms" ? "Time to first token" : field === "cost_usd" ? "Cost per request" : field.replace(/^score:/, "Score ");
  return `${what}, ${STATISTICS[statistic] ?? statistic}`;
}

/** The unit that measures must share to stand on one axis. */
export function unit(name) {
  if (name.startsWith("cost_usd")) return name === "cost_usd" ? "usd" : "usd each";
  if (name.startsWith("latency_ms") || name.startsWith("ttft_ms")) return "ms";
  if (name.endsWith("_tokens")) return "tokens";
  return name;
}

/** An additive value as a whole number: picodollars or a count. */
export const whole = (name, text) => (name === "cost_usd" ? pico(text) : BigInt(text));

/** A whole number as the server would write it. */
export const unwhole = (name, value) => (name === "cost_usd" ? decimal(value) : String(value));

/** Where a value stands in a chart: a float, for pixels only. */
export function coordinate(name, text) {
  if (text === null || text === undefined) return null;
  return name === "cost_usd" ? Number(pico(text)) / 1e12 : Number(text);
}

/** A value as it is shown, all digits; null is a dash. */
export function valueText(name, text, zone = "UTC") {
  if (text === null || text === undefined) return "–";
  if (name.startsWith("cost_usd")) return dollars(text);
  if (name in COUNTS || name in DISTINCT || name.endsWith(":count")) return count(text);
  if (name === "error_rate") return `${(Number(text) * 100).toFixed(1)}%`;
  if (name.startsWith("latency_ms") || name.startsWith("ttft_ms")) return took(text);
  if (name === "first_seen" || name === "last_seen") return timeText(millis(text), zone, "second");
  return Number(text).toLocaleString("en-US", { maximumSignificantDigits: 6 });
}

const COMPACT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const MONEY = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", notation: "compact", maximumSignificantDigits: 3 });

/** A label of an axis: the only rounded figures of the page. */
export function axisText(name, value) {
  if (name.startsWith("cost_usd")) return MONEY.format(value);
  if (name === "error_rate") return `${+(value * 100).toFixed(2)}%`;
  if (unit(name) === "ms") return took(value);
  return COMPACT.format(value);
}
