// Signing in, which view is shown, and when it is read again.
import { explain, get, key } from "./api.js";
import { Budgets } from "./budgets.js";
import { $, show, write } from "./dom.js";
import { pico } from "./exact.js";
import { shown } from "./names.js";
import { Overview } from "./overview.js";
import { BEGINNING, firstDay } from "./period.js";
import { Person } from "./person.js";
import { follow } from "./stream.js";
import { Live, Users } from "./users.js";

const STREAMED = 20_000; // users up to which the page follows every row; beyond, it asks
const APART = 1000; // milliseconds between two readings, however much happens
const ASK = 5000; // milliseconds between two readings without a stream
const IDLE = 30_000; // milliseconds after which figures that move with the clock are read again
const MINUTE = 60_000;

const live = new Live();
const overview = new Overview();
const budgets = new Budgets();
const person = new Person();
const users = new Users(live, failed);

let session = null; // an AbortController while signed in
let today = new Date().toISOString().slice(0, 10);
let samples = []; // what all of it came to, and when: [milliseconds, picodollars]
let link = "off"; // the stream: "off", "live", "lost", or "none" if this server or project is without
let busy = false;
let again = false;
let lastRead = 0;
let timer;

// --- reading ---------------------------------------------------------------------------------------------------------

const period = () => $("range").value;

/** Read what is shown; soon, but not more often than `APART`. */
function refresh(wait = 0) {
  if (!session) return;
  if (busy) {
    again = true;
    return;
  }
  clearTimeout(timer);
  timer = setTimeout(read, Math.max(wait, lastRead + APART - Date.now()));
}

async function read() {
  if (document.hidden && lastRead) return; // read when somebody looks
  const mine = session;
  [busy, again, lastRead] = [true, false, Date.now()];
  try {
    await (route() === null ? readOverview(mine) : readPerson(mine));
    if (mine === session) show($("problem"), false);
  } catch (error) {
    if (mine === session) failed(error);
  }
  busy = false;
  if (mine === session && session) refresh(again ? 0 : link === "live" ? IDLE : ASK);
  else if (session) refresh();
}

async function readOverview(mine) {
  const first = firstDay(period(), today);
  const [costs, quota, spent, all] = await Promise.all([
    get("/v1/costs", { start: `${first ?? BEGINNING}T00:00:00Z` }, mine.signal),
    get("/v1/quota", {}, mine.signal),
    get("/v1/budgets", {}, mine.signal),
    everything(mine),
  ]);
  if (mine !== session) return;
  today = costs.asOf.slice(0, 10);
  write($("who"), quota.organization === "default" ? "" : shown(quota.organization));
  write($("as-of"), `As of ${costs.asOf.slice(0, 19).replace("T", " ")} UTC.`);
  sample(pico(all.total.cost_usd));
  const empty = all.total.requests === "0";
  show($("empty"), empty);
  budgets.update(spent);
  overview.update(costs, quota, period(), first);
  users.reset(period(), first, empty);
  await users.refresh();
  stream(mine, all);
}

async function readPerson(mine) {
  const [all] = await Promise.all([everything(mine), person.refresh(period(), firstDay(period(), today))]);
  if (mine === session) stream(mine, all);
}

/** The sums over all users and all time. */
function everything(mine) {
  return get("/v1/users", { limit: 1 }, mine.signal);
}

function sample(cost) {
  const now = Date.now();
  samples.push([now, cost]);
  while (samples.length > 2 && samples[1][0] <= now - MINUTE) samples.shift();
  pace();
}

function pace() {
  if (!samples.length) return overview.pace(null);
  const [[then, cost], latest] = [samples[0], samples.at(-1)[1]];
  const age = Date.now() - then;
  overview.pace({ cost: latest - cost, words: age >= MINUTE ? "in the last minute" : "since the page was opened" });
}

// --- the stream ------------------------------------------------------------------------------------------------------

async function stream(mine, all) {
  const count = Number(all.total.users);
  live.complete = link === "live" && live.size >= count;
  if (link !== "off") return;
  if (count > STREAMED) {
    state("none");
    return;
  }
  link = "lost";
  try {
    await follow("/v1/stream/users", mine.signal, (name, body) => mine === session && name !== "error" && changed(name, body.users), state);
  } catch (error) {
    if (mine !== session) return;
    if (error.status === 401 || error.status === 403) return failed(error);
    state("none"); // this server has no stream
  }
}

function changed(name, rows) {
  if (name === "budget") return refresh();
  if (name === "snapshot") live.clear();
  live.apply(rows);
  const id = route();
  if (id !== null && !rows.some((row) => row.user_id === id)) return;
  if (id === null && users.isLive) users.refresh().catch(failed);
  refresh();
}

function state(now) {
  if (now === link && !$("live").hidden) return;
  link = now;
  const texts = { live: "Live", lost: "Connection lost, trying again", none: "Read every 5 seconds" };
  write($("live"), texts[now]);
  $("live").dataset.state = now;
  show($("live"), true);
  if (now !== "live") live.complete = false;
  refresh(now === "live" ? 0 : ASK);
}

// --- signing in ------------------------------------------------------------------------------------------------------

function failed(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401 || error.status === 403) {
    signOut(explain(error));
    return;
  }
  if (error.status === undefined) console.error(error);
  write($("problem"), `${error.status === undefined ? "The page has a fault" : explain(error)}: ${error.status === undefined ? error.message : "trying again every 5 seconds."}`);
  show($("problem"), true);
}

async function signIn(event) {
  event.preventDefault();
  const field = $("key");
  const secret = field.value.trim();
  write($("key-error"), "");
  const button = $("sign-in-form").querySelector("button");
  if (!/^lqt_[0-9a-fA-F]{64}$/.test(secret)) {
    refuse("A key is lqt_ and 64 hexadecimal characters. Check that it was copied whole.");
    return;
  }
  button.disabled = true;
  key.set(secret);
  try {
    await get("/v1/quota");
    field.value = "";
    enter();
    $("content").focus();
  } catch (error) {
    key.forget();
    refuse(explain(error));
  } finally {
    button.disabled = false;
  }
}

function refuse(text) {
  write($("key-error"), text);
  $("key").setAttribute("aria-invalid", "true");
  $("key").focus();
}

function signOut(text = "") {
  key.forget();
  session?.abort();
  session = null;
  clearTimeout(timer);
  live.clear();
  users.clear();
  samples = [];
  for (const id of ["live", "range-pick", "sign-out", "overview", "person", "problem"]) show($(id), false);
  write($("who"), "");
  write($("as-of"), "");
  show($("sign-in"), true);
  if (text) refuse(text);
  else $("key").focus();
}

function enter() {
  session = new AbortController();
  [link, lastRead, busy, again] = ["off", 0, false, false];
  $("key").removeAttribute("aria-invalid");
  show($("sign-in"), false);
  show($("range-pick"), true);
  show($("sign-out"), true);
  navigate();
}

// --- which view ------------------------------------------------------------------------------------------------------

/** The user whose page is shown; null: the overview. */
function route() {
  const [, id] = /^#\/users\/(.+)$/s.exec(location.hash) ?? [];
  try {
    return id === undefined ? null : decodeURIComponent(id);
  } catch {
    return null;
  }
}

function navigate(event) {
  if (!session) return;
  const id = route();
  show($("overview"), id === null);
  show($("person"), id !== null);
  document.title = id === null ? "spendstream" : `${shown(id)} · spendstream`;
  if (id !== null) person.open(id);
  if (event) (id === null ? $("content") : $("person-title")).focus();
  if (event) scrollTo(0, 0);
  lastRead = 0;
  refresh();
}

// --- light and dark --------------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];

function theme(next) {
  const root = document.documentElement;
  const now = root.dataset.theme ?? "auto";
  const wanted = next ? THEMES[(THEMES.indexOf(now) + 1) % THEMES.length] : now;
  if (wanted === "auto") delete root.dataset.theme;
  else root.dataset.theme = wanted;
  write($("theme"), `Theme: ${wanted}`);
  if (!next) return;
  try {
    localStorage.setItem("spendstream.theme", wanted);
  } catch {
    // storage is switched off: until the tab is closed, then
  }
  overview.chart.redraw();
  person.chart.redraw();
}

// --- the first event -------------------------------------------------------------------------------------------------

function firstEvent() {
  const event = {
    event_id: crypto.randomUUID?.() ?? "550e8400-e29b-41d4-a716-446655440001",
    trace_id: "first",
    span_id: "first",
    timestamp: new Date().toISOString(),
    provider: "openai",
    model: "gpt-4o",
    operation: "chat",
    latency_ms: 843,
    input_tokens: 512,
    output_tokens: 128,
    cost_usd: 0.0034,
    status: "success",
    stream: false,
    environment: "production",
    sdk_version: "1.0.0",
    user_id: "first-user",
  };
  const head = `curl -X POST ${location.origin}/v1/ingest \\\n  -H "x-api-key: lqt_your_api_key_here" \\\n  -H "Content-Type: application/x-ndjson" \\\n`;
  return `${head}  --data-binary '${JSON.stringify(event)}'`;
}

write($("first-event"), firstEvent());
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("first-event").textContent);
    write($("copied"), "Copied");
  } catch {
    write($("copied"), "The browser does not let this page copy: select the text instead");
  }
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("content").focus();
});
$("sign-in-form").addEventListener("submit", signIn);
$("sign-out").addEventListener("click", () => signOut());
$("theme").addEventListener("click", () => theme(true));
$("range").addEventListener("change", () => {
  lastRead = 0;
  refresh();
});
addEventListener("hashchange", navigate);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(() => session && pace(), 5000);
theme(false);
if (key.get()) enter();
else show($("sign-in"), true);
