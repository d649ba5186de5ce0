// Ids and names as they are shown: what has no shape of its own, or changes that of its neighbours, becomes an escape.

// Control characters, bidi controls, characters without a width, separators of lines, lone surrogates, tags: the same
// as in the program's terminal output (processor/core/visible.py).
const HIDDEN =
  /[\0-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{d800}-\u{dfff}\u{e0000}-\u{e007f}]/gu;
// Blanks: white space, the joiners, and letters that are drawn as nothing.
const BLANK = "[\\s\\u115f\\u1160\\u200c\\u200d\\u2800\\u3164\\uffa0]";
const EDGES = new RegExp(`^${BLANK}+|${BLANK}+$`, "gu");
const SHORT = { "\t": "\\t", "\n": "\\n", "\r": "\\r", " ": "␣" };

/** `text` to read and to click on: "\u202e" for an override, and "␣" for a blank at its beginning or end. */
export function shown(text) {
  return text.replace(EDGES, (blanks) => [...blanks].map(escape).join("")).replace(HIDDEN, escape);
}

function escape(character) {
  const code = character.codePointAt(0);
  if (character in SHORT) return SHORT[character];
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
}
