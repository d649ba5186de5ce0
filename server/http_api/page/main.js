// Signing in, and which view is shown. A view's module is loaded when it is opened first.
import { explain, get, key } from "./api.js";
import { Bar, drawNavigation } from "./bar.js";
import { copy } from "./clipboard.js";
import { $, el, focusLater, show, write } from "./dom.js";
import { sharedOf } from "./filters.js";
import { shown } from "./names.js";
import { current, entry, format, go, listen } from "./router.js";
import { browserZone } from "./zone.js";

const TITLES = { explore: "Explore", events: "Events", traces: "Traces", sessions: "Sessions", prompts: "Prompts" };

let session = null; // an AbortController while signed in
let shownRoute = null;
let cameFrom = null; // the route before, if this one was reached by a link of the page
const places = new Map(); // of entries of the history: {scroll, focus}
let place = null;
let livePage = null; // the overview and the pages of users, once one of them was opened

const bar = new Bar($("bar"));
const views = new Map(); // name -> {view, host, module}

// --- views -----------------------------------------------------------------------------------------------------------

const context = {
  get signal() {
    return session.signal;
  },
  /** Whether a failure ended the session. */
  failed(error) {
    const isOver = error.status === 401 || error.status === 403;
    if (isOver) failed(error);
    return isOver;
  },
  /** Whether Back leads from an opened detail to its list. */
  cameFromList: () => cameFrom !== null && cameFrom.view === shownRoute.view && cameFrom.id === null,
};

async function loaded(name) {
  if (!views.has(name)) {
    const module = await import(`./${name}_view.js`);
    if (!views.has(name)) {
      const host = el("div", { class: "view", id: `view-${name}` });
      $("views-hosts").append(host);
      views.set(name, { host, module, view: new module.View(host, context) });
    }
  }
  return views.get(name);
}

/** The elements of the content of a tag that have an id, an address or a label. */
function alike(tag, key) {
  return [...$("content").querySelectorAll(tag)].filter((each) => keyOf(each) === key);
}

const keyOf = (element) => element.id || element.getAttribute("href") || element.getAttribute("aria-label") || "";

/** What an element is found again by after its view was drawn anew; null: nothing within the content has the focus. */
function nameOf(element) {
  if (!$("content").contains(element) || element === $("content")) return null;
  const [tag, key] = [element.localName, keyOf(element)];
  return { tag, key, at: alike(tag, key).indexOf(element) };
}

let focused = null; // what has the focus (`nameOf`), looked up when it gets there, not with every scroll

function remember() {
  if (place !== null && shownRoute) places.set(place, { scroll: scrollY, focus: focused });
}

function rememberFocus(element) {
  focused = element ? nameOf(element) : null;
  remember();
}

/** Brings somebody back to where they were in a view, unless they have gone into a field since `before` had the focus. */
function restore(saved, before) {
  const now = document.activeElement;
  if (!saved || (now !== before && now.matches("input, select, textarea"))) return;
  const { focus } = saved;
  if (focus) alike(focus.tag, focus.key)[focus.at]?.focus({ preventScroll: true });
  else if ($("content").contains(document.activeElement)) document.activeElement.blur();
  scrollTo(0, saved.scroll);
}

async function navigate(route, restored) {
  if (!session) return;
  const before = shownRoute;
  cameFrom = restored ? null : before;
  shownRoute = route;
  place = entry();
  const saved = restored ? places.get(place) : undefined;
  const had = document.activeElement;
  const { view, id, params } = route;
  const shared = sharedOf(params);
  drawNavigation(route, shared);
  const isUser = view === "users" && id !== null;
  const isToday = view === "" || isUser;
  show($("overview"), isToday && !isUser);
  show($("person"), isUser);
  for (const each of ["footer-note", "as-of"]) show($(each), isToday);
  for (const [name, each] of views) if (name !== view) leave(name, each);
  document.title = isUser ? `${shown(id)} · spendstream` : isToday ? "spendstream" : `${TITLES[view] ?? "Overview"} · spendstream`;
  if (!isToday) {
    livePage?.pause();
    show($("live"), false);
    show($("problem"), false);
    show($("kept"), false);
  }
  await (isToday ? navigateToday(route, restored, before, shared) : navigateView(route, restored, before));
  if (shownRoute === route) restore(saved, had);
}

async function navigateToday(route, restored, before, shared) {
  const { id, view } = route;
  const mine = session;
  bar.update(route, { signal: session.signal });
  show($("bar"), true);
  const isMoved = before && (before.view !== view || before.id !== id);
  const focus = focusLater();
  try {
    const { LivePage } = await import("./live_page.js");
    if (mine !== session) return;
    if (!livePage) {
      livePage = new LivePage({ failed, worked: () => show($("problem"), false) });
      livePage.start(session);
    }
  } catch (error) {
    failed(error);
    return;
  }
  if (shownRoute !== route) return;
  livePage.resume();
  if (livePage.isOn && $("live").textContent) show($("live"), true);
  const shownThen = livePage.show(id, shared, restored);
  if (isMoved && !restored) {
    focus(id === null ? $("content") : $("person-title")); // not before: a reading that ended meanwhile may have hidden it
    scrollTo(0, 0);
  }
  await shownThen;
}

async function navigateView(route, restored, before) {
  const mine = session;
  const focus = focusLater();
  let made;
  try {
    made = await loaded(route.view);
  } catch (error) {
    failed(error);
    return;
  }
  if (mine !== session || shownRoute !== route) return;
  const { host, view, module } = made;
  show(host, true);
  const names = [...new Set(sharedOf(route.params).keys())];
  bar.update(route, { signal: session.signal, own: module.own, unused: module.unused(route, names) });
  show($("bar"), true);
  const isNew = !before || before.view !== route.view;
  const isMoved = isNew || before.id !== route.id;
  if (isMoved && !restored && before && route.id === null) focus($("content"), { preventScroll: true });
  if (isMoved && !restored && (isNew || route.view !== "events")) scrollTo(0, 0);
  await view.update(route, restored, isNew);
}

function leave(name, { host, view }) {
  if (host.hidden) return;
  show(host, false);
  view.close?.();
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
    $("content").focus({ preventScroll: true });
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
  livePage?.stop();
  for (const [name, each] of views) leave(name, each);
  $("views-hosts").replaceChildren();
  views.clear();
  [shownRoute, cameFrom, place] = [null, null, null];
  places.clear();
  for (const id of ["live", "sign-out", "overview", "person", "problem", "views", "bar", "kept"]) show($(id), false);
  write($("live"), "");
  show($("sign-in"), true);
  if (text) refuse(text);
  else $("key").focus();
}

/** The zone that was chosen in this browser goes into an address that names none. */
function withZone() {
  let wanted = null;
  try {
    wanted = localStorage.getItem("spendstream.zone");
  } catch {
    // storage is switched off
  }
  const { view, id, params } = current();
  if (wanted !== "browser" || params.has("tz") || browserZone() === "UTC") return;
  params.set("tz", browserZone());
  go(format(view, id, params), { replace: true, silent: true });
}

function enter() {
  session = new AbortController();
  livePage?.start(session);
  $("key").removeAttribute("aria-invalid");
  show($("sign-in"), false);
  show($("sign-out"), true);
  show($("views"), true);
  withZone();
  navigate(current(), false);
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
  livePage?.redraw();
  dispatchEvent(new Event("spendstream:theme"));
}

// --- what is clicked -------------------------------------------------------------------------------------------------

$("copy").addEventListener("click", () => copy($("first-event").textContent, $("copy")));
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("content").focus();
});
$("sign-in-form").addEventListener("submit", signIn);
$("sign-out").addEventListener("click", () => signOut());
$("theme").addEventListener("click", () => theme(true));
history.scrollRestoration = "manual";
addEventListener("scroll", remember, { passive: true });
addEventListener("focusin", (event) => rememberFocus(event.target));
addEventListener("focusout", (event) => event.relatedTarget === null && rememberFocus(null));
listen((route, restored) => navigate(route, restored));
theme(false);
if (key.get()) enter();
else show($("sign-in"), true);
