// The way to the server: the key, kept in this tab only, and answers with all their digits.
import { parse } from "./exact.js";

const SLOT = "spendstream.key";

/** A request that was not answered with what was asked: `status` 0 if nobody answered; `reason` and `body` as the server gave them. */
export class Failed extends Error {
  constructor(status, message, body = {}, wait = null) {
    super(message);
    this.status = status;
    this.body = body;
    this.reason = body.reason ?? null;
    this.wait = wait; // seconds of Retry-After
  }
}

export const key = {
  get: () => sessionStorage.getItem(SLOT),
  set: (secret) => sessionStorage.setItem(SLOT, secret),
  forget: () => sessionStorage.removeItem(SLOT),
};

/** A request with the key; the response as it comes. Throws `Failed`, with status 0 if nobody answered. */
export async function request(path, options = {}) {
  let response;
  try {
    const headers = { Authorization: `Bearer ${key.get()}`, ...options.headers };
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "The server does not answer");
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = parse(await response.text());
  } catch {
    // not JSON: something in between answered
  }
  const wait = Number(response.headers.get("Retry-After")) || null;
  throw new Failed(response.status, body.error || `The server answered ${response.status}`, body, wait);
}

/** A path with parameters: an object, or pairs where names repeat. What is undefined is left out. */
export function address(path, parameters = {}) {
  const pairs = Array.isArray(parameters) ? parameters : Object.entries(parameters);
  const query = new URLSearchParams(pairs.filter(([, value]) => value !== undefined));
  return query.size ? `${path}?${query}` : path;
}

/** A read: its JSON, numbers as text. Throws `Failed`. */
export async function get(path, parameters = {}, signal) {
  const response = await request(address(path, parameters), { signal });
  return parse(await response.text());
}

/** Reads of one place of the page: a newer one aborts the older. */
export class Latest {
  #controller = new AbortController();

  /** The signal of a new read, after the one before was aborted. `outer`: ends it as well. */
  begin(outer) {
    this.#controller.abort();
    this.#controller = new AbortController();
    return outer ? AbortSignal.any([outer, this.#controller.signal]) : this.#controller.signal;
  }

  abort() {
    this.#controller.abort();
  }
}

/** The path of a single thing, its id encoded once. */
export function pathOf(collection, id) {
  return `${collection}/${encodeURIComponent(id)}`;
}

/** One user: the answer of GET /v1/users/ID. Browsers take "." and ".." out of a path; these two go as a parameter. */
export function getUser(id, parameters = {}) {
  if (id === "." || id === "..") return get("/v1/users/", { user_id: id, ...parameters });
  return get(`/v1/users/${encodeURIComponent(id)}`, parameters);
}

/** What a failed sign-in means to the person at the screen. */
export function explain(failed) {
  if (failed.status === 401)
    return "This key is not known here, has expired or was revoked. Check that it was copied whole: lqt_ and 64 characters.";
  if (failed.status === 403)
    return "This key may not read. Take one with the scope read: spendstream keys create --scopes read.";
  if (failed.status === 0) return "The server does not answer. Is it running, and is this its address?";
  return failed.message;
}
