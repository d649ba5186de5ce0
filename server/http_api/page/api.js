// The way to the server: the key, kept in this tab only, and answers with all their digits.
import { parse } from "./exact.js";

const SLOT = "spendstream.key";

export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
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
  let message = `The server answered ${response.status}`;
  try {
    message = parse(await response.text()).error || message;
  } catch {
    // not JSON: something in between answered
  }
  throw new Failed(response.status, message);
}

/** A read: its JSON, numbers as text. Throws `Failed`. */
export async function get(path, parameters = {}, signal) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== undefined));
  const response = await request(query.size ? `${path}?${query}` : path, { signal });
  return parse(await response.text());
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
