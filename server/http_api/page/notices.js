// What stands in place of an answer: failures by their reason, and why nothing is shown.
import { explain } from "./api.js";
import { el } from "./dom.js";
import { exampleCurl, EXAMPLE_OTLP, EXAMPLE_PYTHON } from "./examples.js";
import { copyButton } from "./clipboard.js";
import { MOST } from "./time_range.js";
import { iso } from "./zone.js";

const OFF = "The event store is switched off, so there are no events, traces, sessions or prompts to show. Overview goes on without it.";
const MISSING = "This API process does not see the directory of the event store. It has to be the one the store writes: SPENDSTREAM_STORE_DIR.";

/** [what it means, what to do] by reason; a function gets the failure. */
const WORDS = {
  event_store_off: () => [OFF, "To switch it on: start the server without SPENDSTREAM_EVENT_STORE=off."],
  event_store_missing: () => ["The event store is not there, or not there yet.", MISSING],
  range_too_wide: (failed) => ["The range is too wide.", failed.message],
  query_too_heavy: (failed) => ["This question is too heavy.", failed.message],
  queries_busy: () => ["Too many questions at once.", "Other questions of this project are being answered."],
  unavailable: (failed) => ["The event store cannot answer now.", failed.message],
  not_found: (failed) => ["Not there.", failed.message],
};

export const isLasting = (failed) => failed.reason === "event_store_off" || isWithoutStore(failed);

/** Whether the failure means that this server does not know event reads at all. */
export function isWithoutStore(failed) {
  return failed.status === 501 || (failed.status === 404 && failed.isList === true);
}

/**
 * A failure as a card with its buttons. `retry` reads again; `narrow(params)` goes to the same question with other times.
 * A busy server is asked again when it said that it may be.
 */
export function problem(failed, { retry, narrow, signal }) {
  const known = isWithoutStore(failed) ? WORDS.event_store_off : WORDS[failed.reason];
  const [title, text] = known ? known(failed) : [failed.status === undefined ? "The page has a fault." : "That did not work.", failed.status === undefined ? failed.message : explain(failed)];
  const said = el("p", {}, text);
  const card = el("div", { class: "card notice", role: "alert", "data-reason": failed.reason ?? "" }, el("h2", {}, title), said);
  const button = (name, action) => {
    const made = el("button", { type: "button" }, name);
    made.addEventListener("click", action);
    card.append(made, " ");
  };
  if (failed.reason === "range_too_wide") button(`Show the last ${MOST / 86_400_000} days of it`, () => narrow({ start: (end) => iso(end - MOST) }));
  if (failed.reason === "query_too_heavy") button("Take half of the range", () => narrow({ half: true }));
  if (retry && !isLasting(failed)) button("Try again", retry);
  if (failed.status === undefined) console.error(failed);
  if (failed.reason === "queries_busy" || ["unavailable", "event_store_missing"].includes(failed.reason) || failed.status === 0) countDown(failed.wait ?? 5, said, text, retry, signal);
  return card;
}

function countDown(seconds, said, text, retry, signal) {
  let left = Math.max(1, Math.ceil(seconds));
  const tick = () => {
    if (!said.isConnected || signal?.aborted) return;
    if (left <= 0) return retry?.();
    said.textContent = `${text} Trying again in ${left} s.`;
    left -= 1;
    setTimeout(tick, 1000);
  };
  queueMicrotask(tick);
}

/** A card that says that the project has no event yet, and how to send one. */
export function noEvents() {
  const curl = exampleCurl();
  const part = (title, text) =>
    el("details", { name: "first" }, el("summary", {}, title), el("pre", { tabindex: "0", "aria-label": title }, el("code", {}, text)), copyButton("Copy", () => text));
  const made = el(
    "div",
    { class: "card notice empty" },
    el("h2", {}, "No events yet"),
    el("p", {}, "Send a first one with a key of the scope ingest; it shows here by itself. For a project full of examples: spendstream demo."),
    part("With curl", curl),
    part("From Python", EXAMPLE_PYTHON),
    part("From OpenTelemetry", EXAMPLE_OTLP),
  );
  made.querySelector("details").open = true;
  return made;
}

/** A card for a store that has not reached the events yet; `text`: how far it is. */
export function beingBuilt(text) {
  return el("div", { class: "card notice empty" }, el("h2", {}, "The event store is being built"), el("p", {}, `${text} What it has shows here by itself; Overview has everything already.`));
}

/** A card that says that nothing matches; `newest`: when the newest event was, in words; `clear` and `longer` ({text, href}): where to go instead. */
export function nothingMatches(newest, { clear, longer }) {
  const links = [clear && el("a", { class: "button", href: clear }, "Clear filters"), longer && el("a", { class: "button", href: longer.href }, longer.text)].filter(Boolean);
  return el(
    "div",
    { class: "card notice empty" },
    el("h2", {}, "Nothing in this range with these filters"),
    el("p", {}, newest ? `The newest event of the project is of ${newest}.` : "No event of the project is within the last 400 days."),
    ...links.flatMap((link) => [link, " "]),
  );
}

const FIELDS = {
  traces: ["trace_id", 'Give all calls of one request the same trace_id, each its own span_id, and the caller\'s span_id as parent_span_id:', '{"trace_id": "4bf92f3577b34da6", "span_id": "b7ad6b71", "parent_span_id": "00f067aa", …}'],
  sessions: ["session_id", "Give all events of one conversation the same session_id:", '{"session_id": "chat-8123", "user_id": "ada", …}'],
  prompts: ["prompt_hash", "Send the hash of the prompt's template with each call, and scores if you have them:", '{"prompt_hash": "9f2c1ab0", "eval_scores": {"helpful": 0.92}, …}'],
};

/** A card that says which field is missing for a view ("traces", "sessions", "prompts"). */
export function missingField(view) {
  const [field, text, example] = FIELDS[view];
  return el(
    "div",
    { class: "card notice empty" },
    el("h2", {}, `No events with a ${field}`),
    el("p", {}, text),
    el("pre", { tabindex: "0", "aria-label": "Example" }, el("code", {}, example)),
    el("a", { href: "/docs" }, "All fields of an event"),
  );
}

/** Marks that what is shown is about to be replaced; only after 300 ms, for most answers are there before. */
export function busy(host) {
  host.setAttribute("aria-busy", "true");
  const timer = setTimeout(() => host.classList.add("stale"), 300);
  return () => {
    clearTimeout(timer);
    host.classList.remove("stale");
    host.removeAttribute("aria-busy");
  };
}

