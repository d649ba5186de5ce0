// The address and what it means: `#/VIEW/ID?name=value`. Ids stay behind the `#`, so that no server log has them.

/** The views by the first part of the address; "" is the overview. Each but the first two is a module, loaded when it is opened. */
export const VIEWS = ["", "users", "explore", "events", "traces", "sessions", "prompts"];

/** {view, id, params} of a hash. A view that is not there is the overview; `id` is null without one. */
export function parse(hash) {
  const [, path = "", query = ""] = /^#?([^?]*)\??(.*)$/s.exec(hash);
  const [, name = "", id] = /^\/?([^/]*)(?:\/(.+))?$/s.exec(path) ?? [];
  const params = new URLSearchParams(query);
  if (!VIEWS.includes(name)) return { view: "", id: null, params };
  try {
    return { view: name, id: id === undefined ? null : decodeURIComponent(id), params };
  } catch {
    return { view: name, id: null, params };
  }
}

/** The hash of a route; parameters stand in the order in which they were set. */
export function format(view, id = null, params = new URLSearchParams()) {
  const path = `#/${view}${id === null ? "" : `/${encodeURIComponent(id)}`}`;
  const query = String(params).replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%21", "!");
  return query ? `${path}?${query}` : path;
}

export const current = () => parse(location.hash);

const listeners = [];
let entries = 0;

/** Calls `listener(route, restored)` for every change of the address; `restored`: by Back, Forward or reload. */
export function listen(listener) {
  listeners.push(listener);
}

function notify(restored) {
  for (const listener of listeners) listener(current(), restored);
}

/** A key of this entry of the history: what a view keeps for Back is kept under it. */
export function entry() {
  if (!history.state?.entry) history.replaceState({ entry: `${Date.now()}.${++entries}` }, "");
  return history.state.entry;
}

/** Goes to a hash: as a new entry of the history, or with `replace` (typing, selection) in place of this one. */
export function go(hash, { replace = false, silent = false } = {}) {
  if (hash === location.hash && !replace) return;
  if (replace) history.replaceState(history.state, "", hash);
  else history.pushState(null, "", hash);
  entry();
  if (!silent) notify(false);
}

addEventListener("hashchange", () => {
  const restored = Boolean(history.state?.entry);
  entry();
  notify(restored);
});
