// Reads a large answer in pieces, so that no piece keeps the page from answering.
import { parse } from "./exact.js";

const SIZE = 100_000; // characters that are parsed at once
const LONG = 8; // milliseconds after which the page gets its turn

/** Lets the page handle what waits: input, frames. */
export const pause = () => globalThis.scheduler?.yield?.() ?? new Promise((resume) => setTimeout(resume, 0));

/** Something to call often in long work: resolves at once, or after the page had its turn. */
export class Turns {
  #since = performance.now();

  get due() {
    return performance.now() - this.#since > LONG;
  }

  async take() {
    await pause();
    this.#since = performance.now();
  }
}

/**
 * Cuts the text of an object with one long array into what stands before the array, its items and what follows.
 * `push(text)` takes the next piece; it knows strings and depth, whatever the pieces are cut at.
 */
export class Slicer {
  #text = "";
  #at = 0;
  #depth = 0;
  #inString = false;
  #escaped = false;
  #from = -1; // where the items that are not given out begin; -1: before the array, -2: behind it
  #head = "";

  constructor(member) {
    this.opening = `"${member}":[`;
  }

  /** Returns texts of items, each of a part of the array of about `SIZE` characters. */
  push(text) {
    this.#text += text;
    const found = [];
    if (this.#from === -1 && !this.#enter()) return found;
    if (this.#from < 0) return found;
    let cut = -1;
    for (; this.#at < this.#text.length; this.#at++) {
      const code = this.#text.charCodeAt(this.#at);
      if (this.#inString) {
        if (this.#escaped) this.#escaped = false;
        else if (code === 92) this.#escaped = true;
        else if (code === 34) this.#inString = false;
      } else if (code === 34) this.#inString = true;
      else if (code === 123 || code === 91) this.#depth += 1;
      else if (code === 125 || code === 93) {
        this.#depth -= 1;
        if (this.#depth < 0) {
          found.push(this.#text.slice(this.#from, this.#at));
          this.#text = this.#text.slice(this.#at);
          this.#from = -2;
          return found.filter(Boolean);
        }
      } else if (code === 44 && this.#depth === 0) {
        cut = this.#at;
        if (cut - this.#from >= SIZE) {
          found.push(this.#text.slice(this.#from, cut));
          this.#from = cut + 1;
        }
      }
    }
    this.#text = this.#text.slice(this.#from);
    this.#at -= this.#from;
    this.#from = 0;
    return found;
  }

  /** The object without the array's items, once all is there. */
  rest() {
    return this.#head + this.#text;
  }

  #enter() {
    const found = this.#text.indexOf(this.opening);
    if (found < 0) return false;
    this.#head = this.#text.slice(0, found + this.opening.length);
    this.#text = this.#text.slice(found + this.opening.length);
    [this.#from, this.#at] = [0, 0];
    return true;
  }
}

/** Reads a response: `each(items)` gets the parsed items of `member` in order; resolves to the object with an empty one. */
export async function readSliced(response, member, each) {
  const slicer = new Slicer(member);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const turns = new Turns();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    for (let at = 0; at < value.length; at += SIZE) {
      for (const items of slicer.push(value.slice(at, at + SIZE))) {
        each(parse(`[${items}]`));
        if (turns.due) await turns.take();
      }
    }
  }
  return parse(slicer.rest());
}
