// Numbers without loss. An answer's numbers are read as the text they were written in; money is whole picodollars.

const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** JSON in which every number becomes its own text: 0.10 is "0.10", and 2^60 keeps its digits. */
export function parse(text) {
  return JSON.parse(text.replace(TOKEN, (token) => (token[0] === '"' ? token : `"${token}"`)));
}

/** JSON in which every number becomes `{"\0": "its own text"}`: where a number has to be told from a string. */
export function parseMarked(text) {
  return JSON.parse(text.replace(TOKEN, (token) => (token[0] === '"' ? token : `{"\\u0000":"${token}"}`)));
}

/**
 * Cuts the value of a member of an object out of its JSON, unparsed: {rest, value}, where `rest` has `null` for it. Only
 * the object's own members are looked at; `value` is null if it has none of this name.
 */
export function cutMember(text, name) {
  const key = JSON.stringify(name);
  let [depth, inString, from] = [0, false, -1];
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (inString) {
      if (code === 92) at += 1;
      else if (code === 34) inString = false;
    } else if (code === 34) {
      inString = true;
      if (depth === 1 && from < 0 && text.startsWith(`${key}:`, at) && /[{,]\s*$/.test(text.slice(Math.max(0, at - 20), at))) {
        at += key.length;
        from = at + 1;
        inString = false;
      }
    } else if (code === 123 || code === 91) depth += 1;
    else if (code === 125 || code === 93) depth -= 1;
    if (from >= 0 && !inString && ((depth === 1 && code === 44) || depth === 0) && at > from) return { rest: `${text.slice(0, from)}null${text.slice(at)}`, value: text.slice(from, at) };
  }
  return { rest: text, value: null };
}

const PLACES = 12;

/** Picodollars of a decimal as the server writes it. */
export function pico(text) {
  const [, sign, whole, fraction = ""] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(text);
  const value = BigInt(whole + fraction.padEnd(PLACES, "0").slice(0, PLACES));
  return sign ? -value : value;
}

/** The decimal of picodollars, as the server would write it. */
export function decimal(value) {
  const digits = (value < 0n ? -value : value).toString().padStart(PLACES + 1, "0");
  const fraction = digits.slice(-PLACES).replace(/0+$/, "");
  return (value < 0n ? "-" : "") + digits.slice(0, -PLACES) + (fraction && `.${fraction}`);
}

/** The sum of two decimals as the server writes them. */
export const add = (a, b) => decimal(pico(a) + pico(b));

export function grouped(digits) {
  return digits.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/** A sum of dollars in two parts: what is read first, with cents, and the digits after them. */
export function money(text) {
  const [whole, fraction = ""] = text.split(".");
  const sign = whole.startsWith("-") ? "−" : "";
  return [`${sign}$${grouped(whole.replace("-", ""))}.${fraction.padEnd(2, "0").slice(0, 2)}`, fraction.slice(2)];
}

/** All digits of a sum of dollars: $1,234.50, $0.003413. */
export function dollars(text) {
  return money(text).join("");
}

export function count(text) {
  return grouped(text);
}

/** "1 error", "2,104 errors": a count with its noun, whose plural has an s. */
export const counted = (text, noun) => `${count(text)} ${noun}${text === "1" ? "" : "s"}`;

const COMPACT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

/** 1.2M: only where the exact number stands beside it. */
export function compact(text) {
  return COMPACT.format(BigInt(text));
}

/** The rate of `part` in `whole` as `percent` writes it, 100 % at most: cached tokens may stand beside the input tokens. */
export function rate(part, whole) {
  return percent(BigInt(part) > BigInt(whole) ? whole : part, whole);
}

/** `part` of `whole` in percent with one digit after the point, rounded; "–" of nothing. */
export function percent(part, whole) {
  const [a, b] = [BigInt(part), BigInt(whole)];
  if (b === 0n) return "–";
  const tenths = (a * 2000n + b) / (2n * b);
  if (tenths === 0n && a > 0n) return "<0.1%";
  return `${tenths / 10n}.${tenths % 10n}%`;
}
