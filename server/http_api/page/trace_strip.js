// The whole trace on one canvas: a line a depth, errors and matches on top, and the window of the time line.
import { el } from "./dom.js";

const LINES = 14; // at most
const HEIGHT = 56; // pixels, at most
const LINE = 10; // the same of a line

export class TraceStrip {
  /** `onWindow(from, to)` in µs. */
  constructor(host, onWindow) {
    this.onWindow = onWindow;
    this.canvas = el("canvas");
    this.view = el("div", { class: "t-window" });
    this.host = host;
    host.setAttribute("aria-hidden", "true");
    host.replaceChildren(this.canvas, this.view);
    host.addEventListener("pointerdown", (event) => this.#brush(event));
    host.addEventListener("dblclick", () => onWindow(0, this.model.span));
    this.sizes = new ResizeObserver(() => this.model && this.draw());
    this.sizes.observe(host);
  }

  close() {
    this.sizes.disconnect();
  }

  update(model, window, matches) {
    Object.assign(this, { model, window, matches });
    this.draw();
  }

  setWindow(window) {
    this.window = window;
    this.#frameWindow();
  }

  setMatches(matches) {
    this.matches = matches;
    this.draw();
  }

  /** One pass over the steps: coverage by line and pixel from a difference array, then at most 14 x width fills. */
  draw() {
    const { model, canvas, host } = this;
    const width = Math.max(1, host.clientWidth);
    const ratio = devicePixelRatio || 1;
    const count = Math.min(LINES, model.deepest + 1);
    const line = Math.min(LINE, Math.floor(HEIGHT / count));
    const bar = Math.min(line - 1, 7);
    canvas.width = width * ratio;
    canvas.height = count * line * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${count * line}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const lines = Array.from({ length: count }, () => new Int32Array(width + 1));
    const pixel = (at) => Math.min(width - 1, Math.max(0, Math.floor((at / model.span) * width)));
    const marks = { errors: [], matches: [] };
    for (let at = 0; at < model.count; at++) {
      const depth = Math.min(model.depth[at], count - 1);
      const [from, to] = [pixel(model.start[at]), pixel(model.start[at] + model.length[at])];
      lines[depth][from] += 1;
      lines[depth][to + 1] -= 1;
      if (model.flags[at] & 1) marks.errors.push([depth, from]);
      if (this.matches?.[at]) marks.matches.push([depth, from]);
    }
    context.fillStyle = getComputedStyle(canvas).color;
    lines.forEach((changes, depth) => {
      let [sum, start] = [0, -1];
      for (let x = 0; x <= width; x++) {
        sum += changes[x];
        if (sum > 0 && start < 0) start = x;
        if ((sum <= 0 || x === width) && start >= 0) {
          context.fillRect(start, depth * line, x - start, bar);
          start = -1;
        }
      }
    });
    const dots = (found, colour) => {
      context.fillStyle = colour;
      const seen = new Set();
      for (const [depth, x] of found) {
        const key = depth * width + x;
        if (seen.has(key)) continue;
        seen.add(key);
        context.fillRect(x - 1, depth * line, 3, bar);
      }
    };
    dots(marks.errors, getComputedStyle(this.view).color);
    dots(marks.matches, getComputedStyle(this.view).caretColor);
    this.#frameWindow();
  }

  #frameWindow() {
    const [from, to] = this.window;
    const { span } = this.model;
    const isWhole = from <= 0 && to >= span;
    this.view.hidden = isWhole;
    this.view.style.left = `${(from / span) * 100}%`;
    this.view.style.width = `${((to - from) / span) * 100}%`;
  }

  #brush(event) {
    const box = this.host.getBoundingClientRect();
    const share = (each) => Math.max(0, Math.min(1, (each.clientX - box.left) / box.width));
    const first = share(event);
    const done = (each) => {
      removeEventListener("pointerup", done);
      const last = share(each);
      if (Math.abs(last - first) * box.width < 4) return;
      this.onWindow(Math.min(first, last) * this.model.span, Math.max(first, last) * this.model.span);
    };
    addEventListener("pointerup", done);
  }
}
