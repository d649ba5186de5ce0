// The periods one can choose. Days are UTC days, today is one of them.

const DAY = 86_400_000;

export const BEGINNING = "0001-01-01"; // no event is older

export const NAMES = { 7: "last 7 days", 30: "last 30 days", month: "this month", 90: "last 90 days", all: "all time" };

/** The first day of `period` as YYYY-MM-DD, `today` given the same way; undefined: from the beginning. */
export function firstDay(period, today) {
  if (period === "all") return undefined;
  if (period === "month") return `${today.slice(0, 8)}01`;
  return new Date(Date.parse(today) - (Number(period) - 1) * DAY).toISOString().slice(0, 10);
}
