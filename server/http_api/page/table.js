// Tables whose rows stay the same elements while their figures change: focus and selection survive an update.
import { el, write, writeMoney } from "./dom.js";
import { money } from "./exact.js";

/**
 * A table in `host`. `columns`: {title, text(row) | money(row) | link(row), sort, wide}; the first one names the row.
 * A column with `sort` has a button that calls `onSort(sort)`; `wide` ones are left out where there is no room.
 */
export class Table {
  #rows = new Map();
  #buttons = new Map();

  constructor(host, caption, columns, onSort) {
    this.columns = columns;
    this.body = el("tbody");
    const heads = columns.map((column, at) => {
      const head = el("th", { scope: "col", class: classes(column, at) }, column.sort ? "" : column.title);
      if (column.sort) {
        const button = el("button", { type: "button" }, column.title);
        button.addEventListener("click", () => onSort(column.sort));
        head.append(button);
        this.#buttons.set(column.sort, head);
      }
      return head;
    });
    this.table = el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, ...heads)), this.body);
    host.replaceChildren(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}: table` }, this.table));
  }

  sorted(by) {
    for (const [sort, head] of this.#buttons) {
      if (sort === by) head.setAttribute("aria-sort", "descending");
      else head.removeAttribute("aria-sort");
    }
  }

  /** Shows `rows` in their order; `id(row)` tells which is which, `share(row)`, 0 to 1, draws a bar behind the money. */
  update(rows, id, share) {
    const kept = new Map();
    let widest = 0;
    const ordered = rows.map((row) => {
      const name = id(row);
      const line = this.#rows.get(name) ?? this.#line();
      kept.set(name, line);
      this.columns.forEach((column, at) => {
        const cell = line.cells[at];
        if (column.money) {
          const parts = money(column.money(row));
          widest = Math.max(widest, parts[1].length);
          writeMoney(cell.firstChild, parts);
          cell.firstChild.style.setProperty("--own", parts[1].length); // the stylesheet fills up to the longest
          if (share && column.bar) cell.style.setProperty("--share", `${(share(row) * 100).toFixed(2)}%`);
        } else if (column.link) {
          const { href, text, aside } = column.link(row);
          const link = cell.firstChild;
          if (href) link.setAttribute("href", href);
          else link.removeAttribute("href");
          write(link, text);
          link.classList.toggle("none", aside === true);
        } else {
          const [text, title] = [column.text(row)].flat();
          write(cell, text);
          if (title) cell.title = title;
          else cell.removeAttribute("title");
        }
      });
      return line;
    });
    this.table.style.setProperty("--rest", widest);
    for (const [name, line] of this.#rows) if (!kept.has(name)) line.remove();
    this.#rows = kept;
    ordered.forEach((line, at) => {
      if (this.body.rows[at] !== line) this.body.insertBefore(line, this.body.rows[at] ?? null);
    });
  }

  #line() {
    const cells = this.columns.map((column, at) => {
      const made = at === 0 ? el("th", { scope: "row", class: classes(column, at) }) : el("td", { class: classes(column, at) });
      if (column.money) made.append(el("span", { class: "sum" }));
      if (column.link) made.append(el("a"));
      return made;
    });
    return el("tr", {}, ...cells);
  }
}

function classes(column, at) {
  const all = [at > 0 && !column.left && "number", column.money && "money", column.bar && "bar", column.wide && "wide"];
  return all.filter(Boolean).join(" ") || undefined;
}
