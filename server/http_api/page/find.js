// Find by id: an event, a trace, a session or a user of exactly this id.
import { get, getUser, pathOf } from "./api.js";
import { sharedOf } from "./filters.js";
import { current, format, go } from "./router.js";

const PLACES = [
  ["events", (id, signal) => get(pathOf("/v1/events", id), {}, signal)],
  ["traces", async (id, signal) => needs(await get("/v1/traces", { trace_id: id, limit: 1 }, signal), "traces")],
  ["sessions", async (id, signal) => needs(await get("/v1/sessions", { session_id: id, limit: 1 }, signal), "sessions")],
  ["users", (id) => getUser(id)],
];

function needs(answer, name) {
  if (!answer[name].length) throw new Error("none");
}

/** Goes to the first place that knows `id`; `say` is told how it goes. Resolves to whether it was found. */
export async function find(id, signal, say) {
  say("Looking for it…");
  const tries = await Promise.allSettled(PLACES.map(([, ask]) => ask(id, signal)));
  if (signal?.aborted) return false;
  const found = tries.findIndex((each) => each.status === "fulfilled");
  if (found < 0) {
    say("No event, trace, session or user has exactly this id.");
    return false;
  }
  say("");
  go(format(PLACES[found][0], id, sharedOf(current().params)));
  return true;
}
