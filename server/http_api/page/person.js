// One user's page.
import { getUser } from "./api.js";
import { Chart, daysOf } from "./chart.js";
import { $, el, show, write, writeMoney } from "./dom.js";
import { compact, count, money, percent, pico, rate } from "./exact.js";
import { withOnly } from "./filters.js";
import { shown } from "./names.js";
import { lastDay, modelColumns, modelName, shares } from "./overview.js";
import { daysAsked, eventsOfDay, userOfEvents } from "./overview_source.js";
import { format } from "./router.js";
import { Table } from "./table.js";
import { millis, timeText } from "./zone.js";

export class Person {
  constructor() {
    this.chart = new Chart($("p-chart"), "Spend by day, in US dollars", (day) => eventsOfDay(this.source, this.own, day));
    this.models = new Table($("p-models"), "Models of this user, the most expensive first", modelColumns(false, () => this.own));
  }

  /** Another user: nothing of the last one stays. Links keep `params`. */
  open(id, params) {
    this.id = id;
    this.own = withOnly(params, "user_id", id);
    const views = { explore: "Explore", events: "Events", traces: "Traces", sessions: "Sessions" };
    $("person-links").replaceChildren(...Object.entries(views).flatMap(([view, text]) => [el("a", { href: format(view, null, this.own) }, `${text} of this user`), " "]));
    $("back").setAttribute("href", format("", null, params));
    write($("person-title"), shown(id));
    write($("person-sub"), "");
    show($("person-body"), false);
    show($("person-none"), false);
  }

  /** Reads and shows what a source (`sourceOf`) has; resolves to the answer, or undefined. Throws `Failed`. */
  async refresh(source, signal) {
    const { id } = this;
    let user;
    try {
      user = await (source.isTables ? getUser(id, daysAsked(source)) : userOfEvents(source, id, signal));
    } catch (error) {
      if (error.status !== 404 || !source.isTables) throw error;
    }
    if (this.id !== id) return undefined;
    show($("person-body"), user !== undefined && user.requests !== "0");
    show($("person-none"), user === undefined || user.requests === "0");
    if (!user) write($("person-none"), "This project has no user with this id. Ids are compared letter by letter.");
    else if (user.requests === "0") write($("person-none"), `No events of this user: ${source.words}. Choose a longer range${source.isTables ? "" : ", or fewer filters"}.`);
    else this.#render(user, source);
    return user;
  }

  #render(user, source) {
    this.source = source;
    const seen = (at) => timeText(millis(at), source.zone, "minute");
    write($("person-sub"), `${source.words}; first event ${seen(user.first_seen)}, last ${seen(user.last_seen)} ${source.zone}`);
    writeMoney($("p-cost"), money(user.cost_usd));
    write($("p-cost-sub"), user.unpriced === "0" ? "" : `${count(user.unpriced)} requests without a price`);
    write($("p-requests"), count(user.requests));
    write($("p-requests-sub"), `${count(user.errors)} errors (${percent(user.errors, user.requests)})`);
    write($("p-tokens"), compact(String(BigInt(user.input_tokens) + BigInt(user.output_tokens))));
    write($("p-tokens-sub"), `${count(user.input_tokens)} in, ${count(user.output_tokens)} out`);
    write($("p-cache"), rate(user.cached_tokens, user.input_tokens));
    write($("p-cache-sub"), `${count(user.cached_tokens)} of the input tokens`);
    const costs = new Map(user.byDay.map((row) => [row.day, pico(row.cost_usd)]));
    const last = lastDay(source, { asOf: user.asOf, daily: user.byDay });
    const series = { name: "Spend", total: pico(user.cost_usd), value: (day) => costs.get(day) ?? 0n };
    this.chart.update(daysOf(user.byDay, source.first, last), [series], source.words);
    this.models.update(user.byModel, modelName, shares(user.byModel));
  }
}
