// Whether a difference is larger than chance: Welch's t test for means, the test of two proportions for rates, Holm over all.
// Formulas: Welch (1947); the incomplete beta function by its continued fraction (Abramowitz and Stegun, 26.5.8).

export const LEAST = 100; // requests of each side below which nothing is said
export const LEVEL = 0.01;

/** The logarithm of the gamma function (Lanczos). */
function logGamma(x) {
  const factors = [76.18009172947146, -86.50532032941677, 24.01409824083091, -1.231739572450155, 0.001208650973866179, -0.000005395239384953];
  const sum = factors.reduce((total, factor, at) => total + factor / (x + at + 1), 1.000000000190015);
  return -(x + 5.5 - (x + 0.5) * Math.log(x + 5.5)) + Math.log((2.5066282746310005 * sum) / x);
}

/** The regularised incomplete beta function. */
function beta(x, a, b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x));
  if (x > (a + 1) / (a + b + 2)) return 1 - beta(1 - x, b, a);
  const tiny = 1e-300;
  let [c, d] = [1, 1 - ((a + b) * x) / (a + 1)];
  d = 1 / (Math.abs(d) < tiny ? tiny : d);
  let result = d;
  for (let m = 1; m <= 1000; m++) {
    for (const term of [(m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)), (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1))]) {
      d = 1 + term * d;
      c = 1 + term / c;
      d = 1 / (Math.abs(d) < tiny ? tiny : d);
      c = Math.abs(c) < tiny ? tiny : c;
      result *= d * c;
    }
    if (Math.abs(d * c - 1) < 1e-14) break;
  }
  return (front * result) / a;
}

/** The two-sided p of Student's t with `freedom` degrees of freedom. */
export const studentP = (t, freedom) => beta(freedom / (freedom + t * t), freedom / 2, 0.5);

/** The two-sided p of a standard normal. */
export const normalP = (z) => studentP(z, 1e7);

/** Welch's test of two means {mean, sd, n}; null: cannot be made. */
export function welch(a, b) {
  if (![a, b].every(({ mean, sd, n }) => n >= 2 && Number.isFinite(mean) && Number.isFinite(sd))) return null;
  const [u, v] = [a.sd ** 2 / a.n, b.sd ** 2 / b.n];
  if (u + v === 0) return a.mean === b.mean ? 1 : 0;
  const freedom = (u + v) ** 2 / (u ** 2 / (a.n - 1) + v ** 2 / (b.n - 1));
  return studentP((a.mean - b.mean) / Math.sqrt(u + v), freedom);
}

/** The test of two proportions {hits, n}, the variance pooled; null: cannot be made. */
export function proportions(a, b) {
  if (a.n < 1 || b.n < 1) return null;
  const pooled = (a.hits + b.hits) / (a.n + b.n);
  const variance = pooled * (1 - pooled) * (1 / a.n + 1 / b.n);
  return variance === 0 ? 1 : normalP((a.hits / a.n - b.hits / b.n) / Math.sqrt(variance));
}

/** Holm's adjusted p of several tests, in their order; null stays null. */
export function holm(found) {
  const order = found.map((p, at) => [p, at]).filter(([p]) => p !== null).sort((a, b) => a[0] - b[0]);
  const adjusted = found.map(() => null);
  let highest = 0;
  order.forEach(([p, at], rank) => {
    highest = Math.max(highest, Math.min(1, p * (order.length - rank)));
    adjusted[at] = highest;
  });
  return adjusted;
}

/** "p < 0.001", "p = 0.004". */
export const pText = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`);
