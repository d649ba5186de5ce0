// Server-sent events by fetch: EventSource cannot send a key in a header.
import { request } from "./api.js";
import { parse } from "./exact.js";

/** Cuts text, however it is broken up, into events {event, data, id}. */
export class Parser {
  #rest = "";
  #event = "";
  #data = [];
  #id;

  /** Takes the next piece; returns the events that are complete. */
  push(text) {
    const found = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) found.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
        this.#event = "";
        this.#data = [];
        continue;
      }
      const [, name, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
      if (name === "event") this.#event = value;
      else if (name === "data") this.#data.push(value);
      else if (name === "id") this.#id = value;
    }
    return found;
  }
}

const QUIET = 60_000; // milliseconds without a byte after which a connection counts as lost
const LONGEST = 15_000; // milliseconds between two tries

/**
 * Follows `path` until `signal` aborts: `onEvent(name, body)` for each event, `onState("live" | "lost", failed)`.
 * A lost connection is taken up again where it ended. Throws `Failed` if the server will not have it: 401, 403, 404.
 */
export async function follow(path, signal, onEvent, onState) {
  let last;
  let pause = 500;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const response = await request(path, { signal, headers });
      onState("live");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new Parser();
      for (;;) {
        const { done, value } = await within(QUIET, reader);
        if (done) break;
        pause = 500;
        for (const { event, data, id } of parser.push(value)) {
          onEvent(event, parse(data));
          last = id ?? last;
        }
      }
      onState("lost");
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 400 && last) last = undefined; // it does not know the id any more: from the start
      else if ([400, 401, 403, 404, 405].includes(error.status)) throw error;
      onState("lost", error);
    }
    await new Promise((resume) => setTimeout(resume, pause * (0.5 + Math.random() / 2)));
    pause = Math.min(pause * 2, LONGEST);
  }
}

async function within(milliseconds, reader) {
  let timer;
  const quiet = new Promise((resolve) => {
    timer = setTimeout(() => {
      reader.cancel();
      resolve({ done: true });
    }, milliseconds);
  });
  try {
    return await Promise.race([reader.read(), quiet]);
  } finally {
    clearTimeout(timer);
  }
}
