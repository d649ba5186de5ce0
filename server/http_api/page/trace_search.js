// Search within a trace: over name, model, status, error code and ids, in slices, case put aside once.
import { Turns } from "./slices.js";

export class TraceSearch {
  #texts = null;

  constructor(model) {
    this.model = model;
  }

  /** {matches: Uint8Array, list: indexes} of the steps that contain `text`; null if `signal` aborted meanwhile. */
  async find(text, signal) {
    const { model } = this;
    const turns = new Turns();
    if (!this.#texts) {
      const texts = new Array(model.count);
      for (let at = 0; at < model.count; at++) {
        texts[at] = [model.nameOf(at), model.subOf(at), model.names[model.statusOf[at]], model.codes[at] ?? "", model.ids[at], model.spanIds[at]].join("\n").toLowerCase();
        if (at % 500 === 0 && turns.due) await turns.take();
        if (signal.aborted) return null;
      }
      this.#texts = texts;
    }
    const wanted = text.toLowerCase();
    const matches = new Uint8Array(model.count);
    const list = [];
    for (let at = 0; at < model.count; at++) {
      if (this.#texts[at].includes(wanted)) {
        matches[at] = 1;
        list.push(at);
      }
      if (at % 2000 === 0 && turns.due) await turns.take();
      if (signal.aborted) return null;
    }
    return { matches, list };
  }
}

/** The steps that failed, as `find` gives its own. */
export function errorsOf(model) {
  const matches = new Uint8Array(model.count);
  const list = [];
  for (let at = 0; at < model.count; at++) {
    if (!(model.flags[at] & 1)) continue;
    matches[at] = 1;
    list.push(at);
  }
  return { matches, list };
}
