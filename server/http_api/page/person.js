// One user's page.
import { getUser } from "./api.js";
import { Chart, daysOf } from "./chart.js";
import { $, el, show, write, writeMoney } from "./dom.js";
import { compact, count, money, percent, pico, rate } from "./exact.js";
import { withOnly } from "./filters.js";
import { shown } from "./names.js";
import { modelColumns, modelName, shares } from "./overview.js";
import { NAMES } from "./period.js";
import { format } from "./router.js";
import { Table } from "./table.js";

export class Person {
  constructor() {
    this.chart = new Chart($("p-chart"), "Spend by day, in US dollars");
    this.models = new Table($("p-models"), "Models of this user, the most expensive first", modelColumns(false));
  }

  /** Another user: nothing of the last one stays. Links keep `params`. */
  open(id, params) {
    this.id = id;
    const own = withOnly(params, "user_id", id);
    const views = { explore: "Explore", events: "Events", traces: "Traces", sessions: "Sessions" };
    $("person-links").replaceChildren(...Object.entries(views).flatMap(([view, text]) => [el("a", { href: format(view, null, own) }, `${text} of this user`), " "]));
    $("back").setAttribute("href", format("", null, params));
    write($("person-title"), shown(id));
    write($("person-sub"), "");
    show($("person-body"), false);
    show($("person-none"), false);
  }

  /** Reads and shows; throws `Failed`. */
  async refresh(period, first) {
    const { id } = this;
    let user;
    try {
      user = await getUser(id, { start: first });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    if (this.id !== id) return;
    show($("person-body"), user !== undefined && user.requests !== "0");
    show($("person-none"), user === undefined || user.requests === "0");
    if (!user) write($("person-none"), "This project has no user with this id. Ids are compared letter by letter.");
    else if (user.requests === "0") write($("person-none"), `No events of this user: ${NAMES[period]}. Choose a longer period.`);
    else this.#render(user, period, first);
  }

  #render(user, period, first) {
    const seen = (at) => at.slice(0, 16).replace("T", " ");
    write($("person-sub"), `${NAMES[period]}; first event ${seen(user.first_seen)}, last ${seen(user.last_seen)} UTC`);
    writeMoney($("p-cost"), money(user.cost_usd));
    write($("p-cost-sub"), user.unpriced === "0" ? "" : `${count(user.unpriced)} requests without a price`);
    write($("p-requests"), count(user.requests));
    write($("p-requests-sub"), `${count(user.errors)} errors (${percent(user.errors, user.requests)})`);
    write($("p-tokens"), compact(String(BigInt(user.input_tokens) + BigInt(user.output_tokens))));
    write($("p-tokens-sub"), `${count(user.input_tokens)} in, ${count(user.output_tokens)} out`);
    write($("p-cache"), rate(user.cached_tokens, user.input_tokens));
    write($("p-cache-sub"), `${count(user.cached_tokens)} of the input tokens`);
    const costs = new Map(user.byDay.map((row) => [row.day, pico(row.cost_usd)]));
    const last = [user.asOf.slice(0, 10), user.byDay.at(-1).day].sort().at(-1);
    const series = { name: "Spend", total: pico(user.cost_usd), value: (day) => costs.get(day) ?? 0n };
    this.chart.update(daysOf(user.byDay, first, last), [series], NAMES[period]);
    this.models.update(user.byModel, modelName, shares(user.byModel));
  }
}
