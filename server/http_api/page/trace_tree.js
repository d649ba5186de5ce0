// The tree of a trace with its time line: a treegrid whose rows are a small pool of elements, placed where they are seen.
import { took } from "./cells.js";
import { el } from "./dom.js";
import { decimal, dollars } from "./exact.js";
import { shown } from "./names.js";
import { FLAG } from "./trace_model.js";

const POOL = 64; // rows that are elements, at most
const LABELS = 60; // pixels right of the time line for durations; the style sheet has the same
const INDENTED = 16; // levels with an indent of their own
const NAMES = { least: 15, usual: 38, most: 65, slot: "spendstream.names" }; // width of the names in percent

/** Steps of 1, 2, 5 times a power of ten, so that at most `most` are in `span`. */
export function tickStep(span, most) {
  const least = span / most;
  const ten = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= least);
}

export class TraceTree {
  #pool = [];
  #frame = null;
  #active = -1;

  /** `events`: {onSelect(at, isOpened), onWindow(from, to), onKey(event) -> true if handled}. */
  constructor(host, events) {
    Object.assign(this, events);
    this.ruler = el("div", { class: "t-ruler", "aria-hidden": "true" });
    const heads = [["t-name", "Step"], ["t-sub", "Model"], ["t-cost", "Cost"]].map(([name, text]) => el("span", { role: "columnheader", class: name }, text));
    const timeHead = el("span", { role: "columnheader", class: "t-line" }, el("span", { class: "unseen" }, "Time"), this.ruler);
    this.inner = el("div", { role: "rowgroup", class: "t-inner" });
    this.scroller = el("div", { class: "t-scroll", role: "presentation" }, this.inner);
    this.grid = el("div", { role: "treegrid", class: "t-grid", tabindex: "0", "aria-label": "Steps of the trace" }, el("div", { role: "rowgroup", class: "t-headgroup" }, el("div", { role: "row", class: "t-head" }, heads[0], heads[1], timeHead, heads[2])), this.scroller);
    host.replaceChildren(this.grid);
    this.scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    this.grid.addEventListener("keydown", (event) => this.#key(event));
    this.inner.addEventListener("click", (event) => this.#click(event));
    this.scroller.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.ruler.addEventListener("pointerdown", (event) => this.#brush(event));
    this.ruler.addEventListener("dblclick", () => this.onWindow(0, this.model.span));
    this.sizes = new ResizeObserver(() => this.#resized());
    this.sizes.observe(this.scroller);
    heads[0].append(this.#grip(heads[0]));
  }

  /** What the column of names is made wider or narrower by: with the pointer, or with arrows while it has the focus. */
  #grip(head) {
    const grip = el("span", { role: "separator", tabindex: "0", class: "t-grip", "aria-orientation": "vertical", "aria-label": "Width of the names", "aria-valuemin": String(NAMES.least), "aria-valuemax": String(NAMES.most) });
    const set = (percent) => {
      const width = Math.round(Math.max(NAMES.least, Math.min(NAMES.most, percent || NAMES.usual)));
      this.grid.style.setProperty("--name", `${width}%`);
      grip.setAttribute("aria-valuenow", String(width));
      try {
        localStorage.setItem(NAMES.slot, String(width));
      } catch {
        // storage is switched off: until the tab is closed, then
      }
      if (!this.model) return;
      this.#rule();
      this.#redraw();
    };
    grip.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      grip.setPointerCapture(event.pointerId);
      const row = head.parentElement.getBoundingClientRect();
      grip.onpointermove = (each) => set(((each.clientX - row.left) / row.width) * 100);
    });
    grip.addEventListener("lostpointercapture", () => (grip.onpointermove = null));
    grip.addEventListener("dblclick", () => set(NAMES.usual));
    grip.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
      if (!by) return;
      event.preventDefault();
      set(Number(grip.getAttribute("aria-valuenow")) + by);
    });
    let kept = null;
    try {
      kept = localStorage.getItem(NAMES.slot);
    } catch {
      // storage is switched off
    }
    if (kept) set(Number(kept));
    else grip.setAttribute("aria-valuenow", String(NAMES.usual));
    return grip;
  }

  close() {
    this.sizes.disconnect();
  }

  /** Shows a model by its rows. `window`: [from, to] in µs. */
  update(model, rows, window) {
    Object.assign(this, { model, rows });
    this.window = window;
    this.rowHeight = matchMedia("(pointer: coarse)").matches ? 32 : 24;
    this.grid.style.setProperty("--row", `${this.rowHeight}px`);
    this.grid.setAttribute("aria-rowcount", String(rows.shown.length + 1));
    this.rowsChanged();
    this.#rule();
  }

  setWindow(window) {
    this.window = window;
    this.#rule();
    this.#redraw();
  }

  /** After rows were opened, closed or filtered. */
  rowsChanged() {
    this.grid.setAttribute("aria-rowcount", String(this.rows.shown.length + 1));
    this.inner.style.height = `${this.rows.shown.length * this.rowHeight}px`;
    this.#resized();
  }

  /** Marks matches (Uint8Array or null) and the critical path (the same). */
  setMarks({ matches, critical }) {
    [this.matches, this.critical] = [matches, critical];
    this.#redraw();
  }

  get active() {
    return this.#active;
  }

  /** Makes a step the active row: scrolled into view, then named to assistive technology. */
  activate(at, { center = false } = {}) {
    this.rows.reveal(at);
    if (this.inner.style.height !== `${this.rows.shown.length * this.rowHeight}px`) this.rowsChanged();
    this.#active = at;
    const top = this.rows.placeOf[at] * this.rowHeight;
    const { scrollTop, clientHeight } = this.scroller;
    if (center && (top < scrollTop || top > scrollTop + clientHeight - this.rowHeight)) this.scroller.scrollTop = top - clientHeight / 2;
    else if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + this.rowHeight > scrollTop + clientHeight) this.scroller.scrollTop = top + this.rowHeight - clientHeight;
    this.#drawNow();
    this.grid.setAttribute("aria-activedescendant", `step-${at}`);
  }

  draw() {
    this.#frame ??= requestAnimationFrame(() => this.#drawNow());
  }

  #redraw() {
    for (const slot of this.#pool) slot.at = -1;
    this.draw();
  }

  #resized() {
    if (!this.rows) return;
    const size = Math.min(POOL, Math.ceil(this.scroller.clientHeight / this.rowHeight) + 12);
    while (this.#pool.length > size) this.#pool.pop().row.remove();
    while (this.#pool.length < size) {
      const slot = makeRow();
      this.#pool.push(slot);
      this.inner.append(slot.row);
    }
    this.width = this.ruler.clientWidth;
    this.#redraw();
  }

  #drawNow() {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    const { shown } = this.rows;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / this.rowHeight) - 6);
    const seen = new Set();
    for (let place = first; place < Math.min(shown.length, first + this.#pool.length); place++) {
      const slot = this.#pool[place % this.#pool.length];
      seen.add(slot);
      const at = shown[place];
      if (slot.at !== at || slot.place !== place) this.#write(slot, at, place);
      const isActive = at === this.#active;
      if (slot.isActive !== isActive) {
        slot.isActive = isActive;
        slot.row.classList.toggle("active", isActive);
        slot.row.setAttribute("aria-selected", String(isActive));
      }
    }
    for (const slot of this.#pool) {
      if (slot.row.hidden !== !seen.has(slot)) slot.row.hidden = !seen.has(slot);
      if (!seen.has(slot)) slot.at = -1;
    }
  }

  #write(slot, at, place) {
    const { model, rows } = this;
    const { row, name, sub, line, cost, bar } = slot;
    [slot.at, slot.place] = [at, place];
    row.id = `step-${at}`;
    row.style.transform = `translateY(${place * this.rowHeight}px)`;
    const up = model.parent[at];
    row.setAttribute("aria-rowindex", String(place + 2));
    row.setAttribute("aria-level", String(model.depth[at] + 1));
    row.setAttribute("aria-posinset", String(model.position[at]));
    row.setAttribute("aria-setsize", String(up < 0 ? model.roots : model.children[up]));
    const isParent = model.children[at] > 0;
    if (isParent) row.setAttribute("aria-expanded", String(rows.isOpen(at)));
    else row.removeAttribute("aria-expanded");
    const flag = (bit) => model.has(at, bit);
    const out = model.outside(at);
    row.className = [
      "t-row",
      isParent ? (rows.isOpen(at) ? "open" : "closed") : "leaf",
      flag(FLAG.error) && "error",
      flag(FLAG.orphan) && "orphan",
      flag(FLAG.cycle) && "cycle",
      flag(FLAG.span) && "step",
      out && "out",
      this.matches?.[at] && "match",
      this.critical?.[at] && "critical",
    ].filter(Boolean).join(" ");
    slot.isActive = false;
    row.style.setProperty("--indent", Math.min(model.depth[at], INDENTED));
    const errors = model.errors[at] - (flag(FLAG.error) ? 1 : 0);
    const marks = [
      model.depth[at] > INDENTED && `(level ${(model.depth[at] + 1).toLocaleString("en-US")})`,
      !rows.isOpen(at) && isParent && `+${(model.size[at] - 1).toLocaleString("en-US")}`,
      flag(FLAG.error) && `! ${model.names[model.statusOf[at]]}`,
      !rows.isOpen(at) && errors > 0 && `!${errors}`,
      flag(FLAG.orphan) && "⚯ parent missing",
      flag(FLAG.cycle) && "↻ cycle",
      flag(FLAG.nested) && "nested call",
    ].filter(Boolean);
    name.textContent = shown(model.nameOf(at) || "unnamed").slice(0, 300);
    name.title = model.nameOf(at).slice(0, 2000);
    name.dataset.marks = marks.join(" ");
    const detail = [model.nameOf(at).slice(0, 300), ...marks, took(model.length[at] / 1000)].join(", ");
    row.setAttribute("aria-label", `${detail}, ${costText(model, at, rows.isOpen(at))}`);
    sub.textContent = shown(model.subOf(at)).slice(0, 100);
    cost.textContent = costText(model, at, rows.isOpen(at));
    this.#bar(line, bar, at);
  }

  #bar(line, bar, at) {
    const { model } = this;
    const [from, to] = this.window;
    const width = Math.max(this.width, 1);
    const [start, end] = [model.start[at], model.start[at] + model.length[at]];
    const isBefore = end < from;
    const isAfter = start > to;
    const left = (Math.max(start, from) - from) / (to - from);
    const share = Math.max((Math.min(end, to) - Math.max(start, from)) / (to - from), 2 / width);
    line.classList.toggle("is-before", isBefore);
    line.classList.toggle("is-after", isAfter);
    bar.hidden = isBefore || isAfter;
    bar.style.transform = `translateX(${(left * width).toFixed(1)}px) scaleX(${share.toFixed(6)})`;
    const text = took(model.length[at] / 1000);
    const right = (left + share) * width;
    const room = right + text.length * 7 + 8 < width + LABELS;
    line.dataset.text = text;
    line.style.setProperty("--text-left", `${Math.max(0, room ? right + 4 : left * width - text.length * 7 - 6).toFixed(0)}px`);
  }

  #rule() {
    const [from, to] = this.window;
    const width = this.ruler.clientWidth || 400;
    this.width = width;
    const ticks = tickStep(to - from, Math.max(2, width / 90));
    const labels = [];
    for (let at = Math.ceil(from / ticks) * ticks; at <= to && labels.length < 20; at += ticks) {
      const made = el("span", {}, tickText(at, ticks));
      made.style.left = `${((at - from) / (to - from)) * 100}%`;
      labels.push(made);
    }
    this.ruler.replaceChildren(...labels.slice(0, 12));
  }

  #click(event) {
    const row = event.target.closest("[role=row]");
    const slot = this.#pool.find((each) => each.row === row);
    if (!slot || slot.at < 0) return;
    const { at } = slot;
    const inName = event.target === slot.name;
    const x = inName ? event.clientX - slot.name.getBoundingClientRect().left : 1e9;
    if (this.model.children[at] && x < (Math.min(this.model.depth[at], INDENTED) + 1) * 12 + 10) return this.toggle(at);
    this.activate(at);
    this.grid.focus({ preventScroll: true });
    this.onSelect(at, true);
  }

  toggle(at, open) {
    this.rows.toggle(at, open);
    this.rowsChanged();
    this.activate(at);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== this.grid) return;
    const { shown, placeOf } = this.rows;
    const at = this.#active;
    const place = at < 0 ? -1 : placeOf[at];
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.rowHeight) - 1);
    const jumps = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: shown.length - 1 };
    const { key } = event;
    if (key in jumps) {
      this.activate(shown[Math.max(0, Math.min(shown.length - 1, jumps[key]))]);
      this.onSelect(this.#active, false);
    } else if (at >= 0 && key === "ArrowRight") {
      if (this.model.children[at] && !this.rows.isOpen(at)) this.toggle(at, true);
      else if (this.model.children[at] && placeOf[at + 1] >= 0) this.#to(at + 1);
    } else if (at >= 0 && key === "ArrowLeft") {
      if (this.rows.isOpen(at) && !this.rows.only) this.toggle(at, false);
      else if (this.model.parent[at] >= 0) this.#to(this.model.parent[at]);
    } else if (at >= 0 && key === "Enter") this.onSelect(at, true);
    else if (at >= 0 && key === "*") {
      this.rows.openSiblings(at);
      this.rowsChanged();
      this.activate(at);
    } else if (!this.onKey(event)) return;
    event.preventDefault();
  }

  #to(at) {
    this.activate(at);
    this.onSelect(at, false);
  }

  /** Zooms by a factor around a share of the width. */
  zoom(factor, share = 0.5) {
    const [from, to] = this.window;
    const span = Math.min(this.model.span, Math.max(10, (to - from) * factor));
    const start = Math.max(0, Math.min(this.model.span - span, from + (to - from) * share - span * share));
    this.onWindow(start, start + span);
  }

  #wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const at = this.ruler.getBoundingClientRect();
    this.zoom(event.deltaY > 0 ? 1.25 : 0.8, Math.max(0, Math.min(1, (event.clientX - at.left) / at.width)));
  }

  #brush(event) {
    const box = this.ruler.getBoundingClientRect();
    const share = (each) => Math.max(0, Math.min(1, (each.clientX - box.left) / box.width));
    const [from, to] = this.window;
    const first = share(event);
    const over = new AbortController();
    const done = (each) => {
      over.abort();
      const last = share(each);
      if (Math.abs(last - first) * box.width < 4) return;
      const [low, high] = [Math.min(first, last), Math.max(first, last)];
      this.onWindow(from + low * (to - from), from + high * (to - from));
    };
    addEventListener("pointerup", done, { signal: over.signal });
    addEventListener("pointercancel", () => over.abort(), { signal: over.signal }); // a touch became a scroll
  }
}

function makeRow() {
  const name = el("span", { role: "rowheader", class: "t-name" });
  const sub = el("span", { role: "gridcell", class: "t-sub" });
  const bar = el("i", { class: "t-bar" });
  const line = el("span", { role: "gridcell", class: "t-line" }, bar);
  const cost = el("span", { role: "gridcell", class: "t-cost" });
  const row = el("div", { role: "row", class: "t-row", hidden: true }, name, sub, line, cost); // until it is written
  return { row, name, sub, line, cost, bar, at: -1, place: -1, isActive: false };
}

/** The cost of the step, or of its subtree while it is closed; what is not priced is counted beside it. */
function costText(model, at, isOpen) {
  const ofTree = !isOpen && model.children[at] > 0;
  const isSpan = model.has(at, FLAG.span);
  const unpriced = ofTree ? model.unpriced[at] : model.has(at, FLAG.unpriced) ? 1 : 0;
  if (!ofTree && isSpan) return model.children[at] ? dollars(decimal(model.allCost[at])) : "";
  const sum = ofTree ? model.allCost[at] : model.cost[at];
  if (unpriced && sum === 0n) return ofTree ? `${unpriced} unpriced` : "unpriced";
  return `${dollars(decimal(sum))}${unpriced ? ` +${unpriced} unpriced` : ""}`;
}

/** An instant of the time line, in the unit of its steps. */
function tickText(at, ticks) {
  if (at === 0) return "0";
  if (ticks < 1000) return `${+(at / 1000).toFixed(3)} ms`;
  if (at < 1e6 && ticks < 1e6) return `${Math.round(at / 1000)} ms`;
  if (at < 60e6) return `${+(at / 1e6).toFixed(3)} s`;
  return took(at / 1000);
}
