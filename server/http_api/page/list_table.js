// Tables of lists: rows are appended and never change; arrows move between their links; cells offer "only this" and "copy".
import { copy } from "./clipboard.js";
import { el } from "./dom.js";

/**
 * `columns`: {title, cell(row) -> node or text, number, wide, sort, only(row) -> href or null, text(row)}. The first
 * one's cell holds the row's link. `text` is what is copied; with it or `only` a cell has buttons.
 */
export class ListTable {
  #buttons = new Map();
  #rows = [];

  constructor(host, caption, columns, onSort) {
    this.columns = columns;
    this.body = el("tbody");
    const heads = columns.map((column, at) => {
      const head = el("th", { scope: "col", class: classes(column, at) }, column.sort ? "" : column.title);
      if (column.hint) head.title = column.hint;
      if (column.sort) {
        const button = el("button", { type: "button" }, column.title);
        button.addEventListener("click", () => onSort(column.sort));
        head.append(button);
        this.#buttons.set(column.sort, head);
      }
      return head;
    });
    this.table = el("table", { class: "list" }, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, ...heads)), this.body);
    this.region = el("div", { class: "scroll list-region", tabindex: "0", role: "region", "aria-label": caption }, this.table);
    host.replaceChildren(this.region);
    this.body.addEventListener("keydown", (event) => this.#move(event));
    this.body.addEventListener("pointerover", (event) => this.#offer(event.target.closest("td, th")));
    this.body.addEventListener("pointerleave", () => this.actions?.remove());
  }

  sorted(by) {
    for (const [sort, head] of this.#buttons) {
      if (sort === by) head.setAttribute("aria-sort", "descending");
      else head.removeAttribute("aria-sort");
    }
  }

  get size() {
    return this.#rows.length;
  }

  rows() {
    return this.#rows;
  }

  clear() {
    this.#rows = [];
    this.body.replaceChildren();
  }

  append(rows) {
    this.#rows.push(...rows);
    this.body.append(...rows.map((row) => this.#line(row)));
  }

  /** Puts rows above the others, the last of `rows` topmost, and keeps at most `most`. */
  prepend(rows, most) {
    this.body.prepend(...rows.map((row) => this.#line(row)).reverse());
    this.#rows.unshift(...[...rows].reverse());
    while (this.#rows.length > most) {
      this.#rows.pop();
      this.body.lastChild.remove();
    }
  }

  /** Marks one row as the opened one; null: none. */
  mark(matches) {
    this.#rows.forEach((row, at) => this.body.rows[at].classList.toggle("chosen", matches?.(row) ?? false));
  }

  /** The link of a row; undefined: there is none. */
  link(at) {
    return this.body.rows[at]?.querySelector("a");
  }

  focus(at) {
    this.link(at)?.focus();
  }

  /** The row whose link has the focus; -1: none. */
  focused() {
    return [...this.body.rows].findIndex((line) => line.contains(document.activeElement));
  }

  #line(row) {
    const cells = this.columns.map((column, at) => {
      const made = el(at === 0 ? "th" : "td", { class: classes(column, at), ...(at === 0 && { scope: "row" }) });
      made.append(column.cell(row) ?? "–");
      return made;
    });
    return el("tr", {}, ...cells);
  }

  #move(event) {
    const jumps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 };
    const jump = jumps[event.key];
    if (!jump || event.ctrlKey || event.metaKey || event.altKey || !event.target.closest("a")) return;
    event.preventDefault();
    const at = this.focused();
    this.focus(Math.max(0, Math.min(this.size - 1, at + jump)));
  }

  #offer(cell) {
    if (!cell || cell.contains(this.actions)) return;
    this.actions?.remove();
    const column = this.columns[cell.cellIndex];
    const row = this.#rows[cell.parentElement.rowIndex - 1];
    const text = row && column?.text?.(row);
    if (text === undefined || text === null) return;
    const copier = el("button", { type: "button", title: "Copy", "aria-label": `Copy ${column.title}`, tabindex: "-1", class: "copy-icon" });
    copier.addEventListener("click", () => copy(text, copier));
    const only = column.only?.(row);
    const link = only && el("a", { href: only, title: "Only this", "aria-label": `Only this ${column.title}`, tabindex: "-1" }, "=");
    this.actions = el("span", { class: "cell-actions" }, ...[link, copier].filter(Boolean));
    cell.append(this.actions);
  }
}

function classes(column, at) {
  return [at > 0 && column.number && "number", column.wide && "wide", column.class].filter(Boolean).join(" ") || undefined;
}
