// A trace in typed arrays, in the depth-first order of the answer: what 50,000 steps need of memory is about 5 MB.
import { pico } from "./exact.js";
import { micros } from "./zone.js";

export const FLAG = { error: 1, orphan: 2, cycle: 4, span: 8, unpriced: 16, nested: 32 };

/** Grows as spans come; `finish` makes the sums. */
export class TraceModel {
  count = 0;
  names = []; // interned texts
  #known = new Map();

  constructor() {
    this.#allocate(1024);
  }

  #allocate(size) {
    const grown = (Type, old) => {
      const made = new Type(size);
      if (old) made.set(old);
      return made;
    };
    this.parent = grown(Int32Array, this.parent);
    this.depth = grown(Uint32Array, this.depth);
    this.start = grown(Float64Array, this.start); // µs from `origin`
    this.length = grown(Float64Array, this.length); // µs
    this.name = grown(Uint32Array, this.name);
    this.sub = grown(Uint32Array, this.sub); // model or tool
    this.flags = grown(Uint8Array, this.flags);
    this.tokens = grown(Float64Array, this.tokens);
    this.statusOf = grown(Uint32Array, this.statusOf);
    this.cost ??= [];
    this.ids ??= [];
    this.spanIds ??= [];
    this.codes ??= [];
  }

  #intern(text) {
    let at = this.#known.get(text);
    if (at === undefined) {
      at = this.names.push(text) - 1;
      this.#known.set(text, at);
    }
    return at;
  }

  /** Adds spans as the answer has them, numbers as text. */
  add(spans) {
    while (this.count + spans.length > this.parent.length) this.#allocate(this.parent.length * 2);
    for (const span of spans) {
      const at = this.count++;
      const start = micros(span.timestamp);
      this.origin ??= start;
      this.parent[at] = span.parent === null || span.parent === undefined ? -1 : Number(span.parent);
      this.depth[at] = Number(span.depth);
      this.start[at] = start - this.origin;
      this.length[at] = Math.round(Number(span.latency_ms ?? 0) * 1000);
      this.name[at] = this.#intern(span.name ?? (span.kind === "span" ? "span" : span.operation) ?? "");
      this.sub[at] = this.#intern(span.kind === "span" ? (span.tools_used?.[0] ?? "") : (span.model ?? ""));
      const isCall = span.kind !== "span";
      const isUnpriced = isCall && (span.cost_usd === null || span.cost_usd === undefined);
      const failed = span.status !== undefined && span.status !== "success";
      this.flags[at] = (failed ? FLAG.error : 0) | (span.orphan ? FLAG.orphan : 0) | (span.cycle ? FLAG.cycle : 0) | (isCall ? 0 : FLAG.span) | (isUnpriced ? FLAG.unpriced : 0) | (span.nested_model_call ? FLAG.nested : 0);
      this.statusOf[at] = this.#intern(span.status ?? "");
      this.tokens[at] = isCall ? Number(span.input_tokens ?? 0) + Number(span.output_tokens ?? 0) : 0;
      this.cost.push(isCall && !isUnpriced ? pico(span.cost_usd) : 0n);
      this.ids.push(span.event_id);
      this.spanIds.push(span.span_id);
      if (span.error_code) this.codes[at] = span.error_code;
      if (span.orphan) (this.parentIds ??= new Map()).set(at, span.parent_span_id);
    }
  }

  /** Makes the sums of subtrees, places among siblings, self times and the critical path. One pass each, no recursion. */
  finish() {
    const { count, parent } = this;
    this.size = new Uint32Array(count).fill(1); // spans of the subtree
    this.children = new Uint32Array(count);
    this.position = new Uint32Array(count);
    this.errors = new Uint32Array(count);
    this.unpriced = new Uint32Array(count);
    this.calls = new Uint32Array(count);
    this.allTokens = this.tokens.slice(0, count);
    this.allCost = this.cost.slice();
    this.roots = 0;
    let earliest = 0;
    let end = 0;
    this.deepest = 0;
    for (let at = 0; at < count; at++) {
      this.deepest = Math.max(this.deepest, this.depth[at]);
      this.position[at] = parent[at] < 0 ? ++this.roots : ++this.children[parent[at]];
      earliest = Math.min(earliest, this.start[at]);
    }
    for (let at = 0; at < count; at++) {
      this.start[at] -= earliest;
      end = Math.max(end, this.start[at] + this.length[at]);
    }
    this.origin = (this.origin ?? 0) + earliest;
    this.span = Math.max(end, 1000); // µs; a trace of no length is 1 ms
    for (let at = count - 1; at >= 0; at--) {
      this.errors[at] += this.flags[at] & FLAG.error ? 1 : 0;
      this.unpriced[at] += this.flags[at] & FLAG.unpriced ? 1 : 0;
      this.calls[at] += this.flags[at] & FLAG.span ? 0 : 1;
      const up = parent[at];
      if (up < 0) continue;
      this.size[up] += this.size[at];
      this.errors[up] += this.errors[at];
      this.unpriced[up] += this.unpriced[at];
      this.calls[up] += this.calls[at];
      this.allTokens[up] += this.allTokens[at];
      this.allCost[up] += this.allCost[at];
    }
    this.#selfTimes();
  }

  /** Self time: the own time that no child covers. Children come by start, so one sweep in order is enough. */
  #selfTimes() {
    const { count, parent, start, length } = this;
    const covered = new Float64Array(count);
    const reached = Float64Array.from({ length: count }, (_, at) => start[at]);
    for (let at = 0; at < count; at++) {
      const up = parent[at];
      if (up < 0) continue;
      const from = Math.max(start[at], reached[up]);
      const to = Math.min(start[at] + length[at], start[up] + length[up]);
      if (to > from) {
        covered[up] += to - from;
        reached[up] = to;
      }
    }
    this.self = Float64Array.from({ length: count }, (_, at) => length[at] - covered[at]);
  }

  /** The steps on the critical path: from a root's end back, always the child that ended last before the point reached. */
  criticalPath() {
    if (this.critical) return this.critical;
    const { count, parent, start, length } = this;
    const lists = new Map(); // children by parent, as indexes
    for (let at = 0; at < count; at++) {
      if (parent[at] < 0) continue;
      if (!lists.has(parent[at])) lists.set(parent[at], []);
      lists.get(parent[at]).push(at);
    }
    for (const list of lists.values()) list.sort((a, b) => start[b] + length[b] - (start[a] + length[a]));
    this.critical = new Uint8Array(count);
    const waiting = [];
    for (let at = 0; at < count; at++) if (parent[at] < 0) waiting.push(at);
    while (waiting.length) {
      const at = waiting.pop();
      this.critical[at] = 1;
      let point = start[at] + length[at];
      for (const child of lists.get(at) ?? []) {
        if (start[child] + length[child] > point) continue;
        waiting.push(child);
        point = start[child];
      }
    }
    return this.critical;
  }

  /** The last step of a step's subtree. */
  last(at) {
    return at + this.size[at] - 1;
  }

  nameOf(at) {
    return this.names[this.name[at]];
  }

  subOf(at) {
    return this.names[this.sub[at]];
  }

  has(at, flag) {
    return (this.flags[at] & flag) !== 0;
  }

  /** How far a step is outside its parent: [µs before its start, µs after its end]; null: inside. */
  outside(at) {
    const up = this.parent[at];
    if (up < 0) return null;
    const before = this.start[up] - this.start[at];
    const after = this.start[at] + this.length[at] - (this.start[up] + this.length[up]);
    return before > 0 || after > 0 ? [Math.max(0, before), Math.max(0, after)] : null;
  }

  /** Whether no step runs for over half of the trace: [from, to] in µs of the longest gap, or null. */
  gap() {
    const order = Array.from({ length: this.count }, (_, at) => at).sort((a, b) => this.start[a] - this.start[b]);
    let [reached, longest] = [0, null];
    for (const at of order) {
      if (this.start[at] - reached > this.span / 2) longest = [reached, this.start[at]];
      reached = Math.max(reached, this.start[at] + this.length[at]);
    }
    return longest;
  }
}

