// How the project's budgets stand.
import { $, show, write } from "./dom.js";
import { percent, pico } from "./exact.js";
import { shown } from "./names.js";
import { format } from "./router.js";
import { Table } from "./table.js";

const what = (row) => [row.user_id, row.model].filter((part) => part !== null).map(shown).join(", ") || "The project";

/** How much of a budget is spent, 0 to 1. */
export function share(row) {
  const [spent, all] = [pico(row.spent), pico(row.usd)];
  return spent >= all ? 1 : Number((spent * 10_000n) / all) / 10_000;
}

/** The highest threshold that was reached, in percent; null: none. */
export function reached(row) {
  return row.reached.length ? row.reached.at(-1).threshold : null;
}

export class Budgets {
  #kept = new URLSearchParams();

  constructor() {
    this.table = new Table($("budgets"), "Budgets, the fullest first", [
      { title: "For", link: (row) => ({ href: row.user_id === null ? null : format("users", row.user_id, this.#kept), text: what(row) }) },
      { title: "Window", text: (row) => `this ${row.window}`, left: true, wide: true },
      { title: "Spent", money: (row) => row.spent, bar: true },
      { title: "Budget", money: (row) => row.usd },
      { title: "Share", text: (row) => percent(pico(row.spent), pico(row.usd)) },
      { title: "Reached", text: (row) => (reached(row) === null ? "–" : `${reached(row)}%`) },
    ]);
  }

  /** What links keep of the address. */
  keep(params) {
    this.#kept = params;
  }

  /** `answer` of /v1/budgets. */
  update({ budgets }) {
    show($("budgets-card"), budgets.length > 0);
    const rows = budgets.toSorted((a, b) => share(b) - share(a));
    this.table.update(rows, (row) => row.id, share);
    const over = rows.filter((row) => pico(row.spent) >= pico(row.usd)).length;
    write($("budgets-sub"), over ? `${over} of ${rows.length} used up` : `${rows.length} set, none used up`);
    $("budgets-sub").classList.toggle("warn", over > 0);
  }
}
