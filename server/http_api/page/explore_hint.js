// A day that stands out, said only from the figures that are shown.
import { isAdditive, whole } from "./measures.js";
import { floor, parts, step, timeText } from "./zone.js";

const LEAST = 4; // other days of the same weekday
const FAR = 3n; // times their median absolute deviation
const WEEKDAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

function median(values) {
  const sorted = [...values].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2n;
}

const distance = (a, b) => (a > b ? a - b : b - a);

/**
 * The day of a model's total that is farthest from the median of the other days of its weekday: {at, day, text}; null
 * where none is far from at least four. Days that are not whole, or not over, are left out.
 */
export function standsOut(model, measure, { interval, range }) {
  if (interval !== "day" || !isAdditive(measure) || !(model.hasTotal || model.groups.length === 1)) return null;
  const { zone } = range;
  const days = model.starts
    .map((start, at) => ({ at, start, end: step(start, "day", zone), weekday: weekdayOf(start, zone), value: whole(measure, model.total.at(measure, at)) }))
    .filter(({ start, end }) => start >= range.start && end <= (range.openEnd ? floor(range.end, "day", zone) : range.end));
  let found = null;
  for (const day of days) {
    const others = days.filter((each) => each !== day && each.weekday === day.weekday).map((each) => each.value);
    if (others.length < LEAST) continue;
    const middle = median(others);
    const far = distance(day.value, middle);
    if (middle === 0n || far <= FAR * median(others.map((each) => distance(each, middle)))) continue;
    const times = (Number((day.value * 1000n) / middle) / 1000).toFixed(1);
    if (times === "1.0" || (found && far <= found.far)) continue;
    found = { far, at: day.at, day: timeText(day.start, zone, "day"), text: `is ${times} times the median of ${others.length} other ${WEEKDAYS[day.weekday]}s` };
  }
  return found;
}

function weekdayOf(at, zone) {
  const [year, month, day] = parts(at, zone);
  return new Date(Date.UTC(year, month - 1, day)).getUTCDay();
}
