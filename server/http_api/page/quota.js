// How long the month's quota lasts.

const HOUR = 3_600_000;

/**
 * What `answer` of /v1/quota means at `now` (milliseconds): {used, share, pace, text}. The pace is today's, from the
 * first hour on; before, and on a day without events, the month's.
 */
export function outlook(answer, now) {
  const resets = Date.parse(answer.resetsAt);
  if (answer.limit === null) return { share: null, text: "no limit" };
  const [limit, used, left] = [answer.limit, answer.used, answer.remaining].map(Number);
  const share = limit ? Math.min(1, used / limit) : 1;
  const date = (at) => new Date(at).toISOString().slice(0, 16).replace("T", " ") + " UTC";
  if (!left) return { share, text: `used up: events are refused until ${date(resets)}` };
  const { day, month } = answer.windows;
  const today = now - Date.parse(day.start);
  const [since, count] = today >= HOUR && Number(day.used) > 0 ? [today, Number(day.used)] : [now - Date.parse(month.start), used];
  if (!count || since <= 0) return { share, text: `unused; starts anew ${date(resets)}` };
  const ends = now + (left / count) * since;
  if (ends >= resets) return { share, text: `enough at this pace; starts anew ${date(resets)}` };
  return { share, late: true, text: `used up in ${span(ends - now)} at this pace, ${date(ends)}` };
}

/** A length of time in words, rounded down: 45 min, 7 h, 3 days. */
export function span(milliseconds) {
  const hours = milliseconds / HOUR;
  if (hours < 1) return `${Math.floor(hours * 60)} min`;
  if (hours < 48) return `${Math.floor(hours)} h`;
  return `${Math.floor(hours / 24)} days`;
}
