// New events as they become visible: at most 500 rows, in the order of arrival, and none moves under the pointer.
import { address } from "./api.js";
import { el, show, write } from "./dom.js";
import { count } from "./exact.js";
import { problem } from "./notices.js";
import { follow } from "./stream.js";

const HELD = 500;
const PART = 8; // rows that are made within one frame

export class LiveTail {
  #controller = null;
  #waiting = [];
  #skipped = 0n;

  /** `table(place)` makes the empty table. */
  constructor(host, context, { table }) {
    Object.assign(this, { host, context, makeTable: table });
    this.state = el("p", { class: "sub", role: "status" });
    this.more = el("button", { type: "button", class: "waiting" });
    this.more.addEventListener("click", () => {
      scrollTo({ top: 0 });
      this.list.region.scrollTop = 0;
      this.#flushAll();
    });
    this.place = el("div", { class: "live-list" });
    host.replaceChildren(el("div", { class: "live-head" }, this.state, this.more), this.place);
    show(host, false);
    document.addEventListener("visibilitychange", () => this.pairs && (document.hidden ? this.#end() : this.#begin()));
    this.place.addEventListener("pointerenter", () => (this.isHeld = true));
    this.place.addEventListener("pointerleave", () => {
      this.isHeld = false;
      this.#soon();
    });
  }

  get running() {
    return this.pairs !== undefined;
  }

  /** Follows the events of some filters; what is followed already goes on. */
  start(pairs) {
    const key = JSON.stringify(pairs);
    show(this.host, true);
    if (this.key === key) return;
    this.stop();
    [this.key, this.pairs] = [key, pairs];
    show(this.host, true);
    this.list = this.makeTable(this.place);
    this.#waiting = [];
    this.#skipped = 0n;
    this.#begin();
  }

  stop() {
    [this.key, this.pairs] = [undefined, undefined];
    this.#end();
    show(this.host, false);
  }

  #end() {
    this.#controller?.abort();
    this.#controller = null;
    write(this.state, "Paused while the tab is hidden.");
  }

  async #begin() {
    if (this.#controller || document.hidden) return;
    const controller = new AbortController();
    this.#controller = controller;
    const signal = AbortSignal.any([controller.signal, this.context.signal]);
    write(this.state, "Connecting…");
    show(this.more, false);
    try {
      await follow(address("/v1/stream/events", this.pairs), signal, (name, body) => this.#event(name, body), (state) => this.#link(state));
    } catch (error) {
      if (signal.aborted || this.context.failed(error)) return;
      if (error.status === 404) error.isList = true;
      this.place.replaceChildren(problem(error, { retry: () => this.#again(), signal }));
      write(this.state, "");
    }
  }

  #again() {
    const { pairs } = this;
    this.stop();
    this.start(pairs);
  }

  #link(state) {
    this.linked = state === "live";
    this.#say();
  }

  #event(name, body) {
    if (name !== "events") return;
    this.#skipped += BigInt(body.skipped ?? "0");
    this.#waiting.push(...body.events);
    if (this.#waiting.length > HELD) this.#waiting.splice(0, this.#waiting.length - HELD);
    this.#soon();
  }

  #soon() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (!this.pairs) return;
      // Rows that somebody points at, or has scrolled to, stay where they are: new ones wait.
      if (!this.isHeld && scrollY < 200 && this.list.focused() < 0 && this.#flush()) this.#soon();
      this.#say();
    });
  }

  /** Puts some of the waiting rows into the list; returns whether there are more. */
  #flush() {
    this.list.prepend(this.#waiting.splice(0, PART), HELD);
    this.#say();
    return this.#waiting.length > 0;
  }

  /** Puts all of them there, part by part, and the focus on the newest. */
  #flushAll() {
    if (!this.pairs) return;
    if (this.#flush()) requestAnimationFrame(() => this.#flushAll());
    else this.list.focus(0);
  }

  #say() {
    const skipped = this.#skipped ? `, ${count(String(this.#skipped))} skipped` : "";
    write(this.state, this.linked ? `Following: ${this.list.size ? `${count(String(this.list.size))} shown${skipped}` : `waiting for events${skipped}`}` : "Connection lost, trying again");
    show(this.more, this.#waiting.length > 0);
    write(this.more, `${this.#waiting.length >= HELD ? `${HELD} or more` : this.#waiting.length} new`);
  }
}

