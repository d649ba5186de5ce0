// The first view: the tiles, spend over time, the models.
import { Chart, daysOf, stack } from "./chart.js";
import { $, show, write, writeMoney } from "./dom.js";
import { compact, count, decimal, dollars, money, percent, pico, rate } from "./exact.js";
import { withOnly } from "./filters.js";
import { shown } from "./names.js";
import { during, eventsOfDay } from "./overview_source.js";
import { outlook } from "./quota.js";
import { format } from "./router.js";
import { Table } from "./table.js";

export const modelName = (row) => `${row.provider} / ${row.model}`;

export const tokenText = (number) => [compact(number), count(number)];

const took = (ms) => (Number(ms) < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toPrecision(3).replace(/\.?0+$/, "")} s`);

/** Half of the requests took no longer than the first, 95 of a hundred no longer than the second. */
function latencyText({ latencyMs: found }) {
  if (!found) return "–";
  const all = `half within ${took(found.p50)}, 95% within ${took(found.p95)}, 99% within ${took(found.p99)}`;
  return [`${took(found.p50)} / ${took(found.p95)}`, `${all}, of ${found.measured === undefined ? "these" : count(found.measured)} requests`];
}

/** The columns of a table of models, for the project and for a user; with `kept()` each is a link to its events. */
export function modelColumns(average, kept) {
  const link = (row) => (row.model === null ? { text: "Other", aside: true } : { text: shown(row.model), href: format("events", null, withOnly(withOnly(kept(), "model", row.model), "provider", row.provider)) });
  return [
    kept ? { title: "Model", link } : { title: "Model", text: (row) => shown(row.model) },
    { title: "Provider", text: (row) => shown(row.provider), left: true, wide: true },
    { title: "Spend", money: (row) => row.cost_usd, bar: true },
    { title: "Requests", text: (row) => count(row.requests), wide: true },
    { title: "Tokens", text: (row) => tokenText(String(BigInt(row.input_tokens) + BigInt(row.output_tokens))), wide: true },
    ...(average ? [{ title: "Per request", money: (row) => row.avgCost, wide: true }] : []),
    { title: "From cache", text: (row) => rate(row.cached_tokens, row.input_tokens), wide: true },
    { title: "Errors", text: (row) => [`${count(row.errors)} (${percent(row.errors, row.requests)})`] },
    ...(average ? [{ title: "Latency", text: latencyText, wide: true }] : []),
  ];
}

/** Which models have requests without a price, those with the most first, and how many; of many only the first. */
export function unpricedModels(rows, most = 5) {
  const found = rows.filter((row) => row.unpriced !== "0").sort((a, b) => (BigInt(a.unpriced) < BigInt(b.unpriced) ? 1 : -1));
  const named = found.slice(0, most).map((row) => `${row.model === null ? "other models" : shown(row.model)} ${count(row.unpriced)}`);
  return [...named, ...(found.length > most ? [`${found.length - most} more models`] : [])].join(", ");
}

/** The share of the largest, for bars. */
export function shares(rows) {
  const most = rows.reduce((top, row) => (pico(row.cost_usd) > top ? pico(row.cost_usd) : top), 0n);
  return (row) => (most ? Number((pico(row.cost_usd) * 10_000n) / most) / 10_000 : 0);
}

/** The last day of a chart: that of the range; of one that goes on to now today, or the last with events where it is later. */
export function lastDay({ last, today, isTables }, { asOf, daily }) {
  return last ?? [today, isTables ? asOf.slice(0, 10) : "", daily.at(-1)?.day ?? ""].sort().at(-1);
}

export class Overview {
  #kept = new URLSearchParams();

  constructor() {
    this.chart = new Chart($("chart"), "Spend by day and model, in US dollars", (day) => eventsOfDay(this.source, this.#kept, day));
    this.models = new Table($("models"), "Models, the most expensive first", modelColumns(true, () => this.#kept));
  }

  /** What links keep of the address. */
  keep(params) {
    this.#kept = params;
  }

  /** `costs` of a source (`sourceOf`). Tiles of what only the tables know, by UTC days and without filters, are hidden else. */
  update(costs, quota, source) {
    const { total } = costs;
    this.source = source;
    for (const tile of document.querySelectorAll(".whole-project")) show(tile, source.isTables);
    show($("t-spend-tile"), !source.isTables);
    writeMoney($("t-spend"), money(total.cost_usd));
    write($("t-spend-sub"), source.words);
    if (source.isTables) this.#wholeProject(costs, source);
    write($("t-cache"), rate(total.cached_tokens, total.input_tokens));
    write($("t-cache-sub"), `${compact(total.cached_tokens)} of ${compact(total.input_tokens)} input tokens, ${source.words}`);
    write($("t-errors"), percent(total.errors, total.requests));
    write($("t-errors-sub"), `${count(total.errors)} of ${count(total.requests)} requests, ${source.words}`);
    this.#quota(quota, Date.parse(costs.asOf));
    this.chart.update(daysOf(costs.daily, source.first, lastDay(source, costs)), stack(costs.dailyByModel, modelName, pico), source.words);
    write($("chart-sub"), `${dollars(total.cost_usd)} ${during(source)}`);
    this.models.update(costs.byModel, modelName, shares(costs.byModel));
    write($("models-sub"), costs.byModel.length ? source.words : `no events ${during(source)}`);
    show($("unpriced"), total.unpriced !== "0");
    write($("unpriced"), `${count(total.unpriced)} of these requests have no price: they are counted, and add nothing to the spend (${unpricedModels(costs.byModel)}).`);
  }

  #wholeProject(costs, source) {
    const today = costs.asOf.slice(0, 10);
    show($("t-today").parentElement, source.range.openEnd);
    writeMoney($("t-today"), money(costs.daily.find((row) => row.day === today)?.cost_usd ?? "0"));
    writeMoney($("t-month"), money(costs.monthToDate));
    write($("t-month-sub"), `${today.slice(0, 7)}, until now`);
    const [forecast, digits] = money(costs.forecast30d);
    write($("t-forecast"), forecast); // an estimate: cents are more than enough, the rest is in the title
    $("t-forecast").title = forecast + digits;
  }

  /** Spend counted since an earlier look, exact. */
  pace(since) {
    const text = since && since.cost > 0n ? `+${dollars(decimal(since.cost))} ${since.words}` : since ? `nothing new ${since.words}` : "";
    write($("t-pace"), text);
  }

  #quota(quota, now) {
    const { share, text, late } = outlook(quota, now);
    write($("t-quota"), share === null ? count(quota.used) : `${percent(quota.used, quota.limit)}`);
    const of = quota.limit === null ? `events in ${quota.period}` : `${count(quota.used)} of ${count(quota.limit)} events`;
    write($("t-quota-sub"), `${of}, ${text}`);
    $("t-quota-sub").classList.toggle("warn", late === true);
    show($("quota-meter"), share !== null);
    $("quota-meter").firstChild.style.setProperty("--share", `${(share ?? 0) * 100}%`);
    $("quota-meter").classList.toggle("late", late === true || share === 1);
  }
}
