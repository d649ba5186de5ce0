// Find by id: an event, a trace, a session or a user of exactly this id.
import { get, getUser, Latest, pathOf } from "./api.js";
import { sharedOf } from "./filters.js";
import { current, format, go } from "./router.js";

const UUID = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;

/** View -> whether it knows an id, in the order of trying. Only lists, which answer without an error, are asked for any id. */
const PLACES = [
  ["traces", async (id, signal) => (await get("/v1/traces", { trace_id: id, limit: 1 }, signal)).traces.length > 0],
  ["sessions", async (id, signal) => (await get("/v1/sessions", { session_id: id, limit: 1 }, signal)).sessions.length > 0],
  ["events", async (id, signal) => UUID.test(id) && Boolean(await get(pathOf("/v1/events", id), {}, signal))],
  ["users", async (id) => Boolean(await getUser(id))],
];

const searches = new Latest();

/**
 * Goes to the first place that knows `id`; `say` is told how it goes. Resolves to whether it was found. A search goes
 * nowhere once `outer` is aborted, or another one has begun.
 */
export async function find(id, outer, say) {
  const signal = searches.begin(outer);
  say("Looking for it…");
  for (const [view, knows] of PLACES) {
    try {
      const isHere = await knows(id, signal);
      if (signal.aborted) return false;
      if (!isHere) continue;
    } catch (error) {
      if (signal.aborted) return false;
      if (error.status === 404) continue;
      say(`Could not look for it: ${error.message}`);
      return false;
    }
    say("");
    go(format(view, id, sharedOf(current().params)));
    return true;
  }
  say("No event, trace, session or user has exactly this id.");
  return false;
}
