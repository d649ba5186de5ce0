// Up to when an answer of the event store is complete, and how long a store that is being built still takes.
import { millis, timeText } from "./zone.js";

const BUILDING = 120; // seconds behind from which on a store is said to be catching up
const NOTHING = 10 * 365 * 86_400; // seconds behind of a store that has nothing yet

let first = null; // of a store that catches up: {asOf, at} in milliseconds, as it was seen first

export const isBuilding = (answer) => Boolean(answer?.building) || Number(answer?.lagSeconds ?? 0) > BUILDING;

/** `Complete up to 14:03:11, 4 s behind.`, of an answer read at `now`. */
export function freshness(answer, zone, now = Date.now()) {
  if (!answer?.asOf) return "";
  const lag = Number(answer.lagSeconds ?? 0);
  if (!isBuilding(answer)) first = null;
  if (lag > NOTHING && !answer.building) return "The event store has no event yet: it is being built from the log.";
  const asOf = millis(answer.asOf);
  const behind = lag < 1 ? "" : `, ${lag <= BUILDING ? `${Math.round(lag)} s` : wait(lag)} behind`;
  const text = `Complete up to ${timeText(asOf, zone, "second")}${zone === "UTC" ? " UTC" : ""}${behind}.`;
  if (answer.building) return `${built(answer.building)} ${text}`;
  return isBuilding(answer) ? `${text} ${progress(asOf, lag, now)}` : text;
}

/** `The event store is being built: 40 % of 1,200,000 messages, 5 min left.`: the store's own figures of a first build. */
function built(build) {
  const [done, of, seconds] = [build.done, build.of, build.secondsLeft ?? NaN].map(Number); // numbers are read as their digits
  const left = Number.isNaN(seconds) ? "" : `, ${wait(seconds)} left`;
  return `The event store is being built: ${Math.floor((100 * done) / of)} % of ${of.toLocaleString("en-US")} messages${left}.`;
}

/** How fast it catches up tells when it is there: seconds of arrivals it goes through in a second, less the one that passes. */
function progress(asOf, lag, now) {
  first ??= { asOf, at: now };
  const speed = (asOf - first.asOf) / Math.max(1, now - first.at);
  const left = speed > 1 ? ` about ${wait(lag / (speed - 1))} left` : " later events are not here yet";
  return `The event store is being built:${left}.`;
}

function wait(seconds) {
  if (seconds < 120) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129_600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} days`;
}
