// The filters of the address: the API's own names, so that a request and a link say the same.

/** Fields that can be filtered by any text. */
export const FIELDS = {
  model: "Model",
  user_id: "User",
  status: "Status",
  provider: "Provider",
  operation: "Operation",
  name: "Name",
  session_id: "Session",
  trace_id: "Trace",
  prompt_hash: "Prompt",
  error_code: "Error code",
  finish_reason: "Finish reason",
  tool: "Tool",
  tag: "Tag",
  kind: "Kind",
  environment: "Environment",
};

/** Bounds: at most one of each. */
export const BOUNDS = { min_cost_usd: "Cost at least", max_cost_usd: "Cost at most", min_latency_ms: "Latency at least (ms)", max_latency_ms: "Latency at most (ms)" };

const EXCLUDED = Object.keys(FIELDS).filter((name) => name !== "kind").map((name) => `${name}!`);
const FILTERS = new Set([...Object.keys(FIELDS), ...EXCLUDED, ...Object.keys(BOUNDS)]);
const TIMES = new Set(["range", "start", "end", "tz"]);

/** The parameters of `params` that all views share: range, zone, environment, filters. */
export function sharedOf(params) {
  return new URLSearchParams([...params].filter(([name]) => FILTERS.has(name) || TIMES.has(name)));
}

/** The filters among `params`, as pairs for a request. */
export function filtersOf(params) {
  return [...params].filter(([name]) => FILTERS.has(name));
}

/** Whether all views share a parameter. */
export const isShared = (name) => FILTERS.has(name) || TIMES.has(name);

/** `params` with one filter more; what is there already is not repeated. */
export function withFilter(params, name, value) {
  const made = new URLSearchParams(params);
  if (name in BOUNDS) made.set(name, value);
  else if (!made.has(name, value)) made.append(name, value);
  return made;
}

/** `params` with only this value of a field. */
export function withOnly(params, name, value) {
  const made = new URLSearchParams(params);
  if (name !== "tag") made.delete(name);
  else for (const each of made.getAll("tag")) if (splitTag(each)?.[0] === splitTag(value)?.[0]) made.delete("tag", each);
  made.append(name, value);
  return made;
}

/** `params` without a filter: without all of its values if none is given. */
export function without(params, name, value) {
  const made = new URLSearchParams(params);
  if (value === undefined) made.delete(name);
  else made.delete(name, value);
  return made;
}

/** The key of a tag as it stands before the `:`. */
export const escapeKey = (key) => key.replace(/[\\:]/g, "\\$&");

/** `KEY:VALUE` of a tag; an empty value means that the tag is absent. */
export const tagText = (key, value) => `${escapeKey(key)}:${value}`;

/** [key, value] of `KEY:VALUE`; null if it is none. */
export function splitTag(text) {
  const [, key, value] = /^((?:[^:\\]|\\[:\\])*):(.*)$/s.exec(text) ?? [];
  return key === undefined ? null : [key.replace(/\\([:\\])/g, "$1"), value];
}

/** The filters that single out a group of the API's `key` object: {model: "x", "tag:team": null}. */
export function ofGroup(key) {
  return Object.entries(key).map(([name, value]) => (name.startsWith("tag:") ? ["tag", tagText(name.slice(4), value ?? "")] : [name, value ?? ""]));
}

/** What a filter says, for people: [label, value]. */
export function words(name, value) {
  const isNot = name.endsWith("!");
  const bare = isNot ? name.slice(0, -1) : name;
  if (bare in BOUNDS) return [BOUNDS[bare], value];
  if (bare === "tag") {
    const [key, inner] = splitTag(value) ?? [value, ""];
    return [`${key} ${isNot ? "is not" : "is"}`, inner === "" ? "absent" : inner];
  }
  return [`${FIELDS[bare] ?? bare} ${isNot ? "is not" : "is"}`, value === "" ? "absent" : value];
}
