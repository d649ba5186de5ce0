// Colours of groups: `s0` to `s7` of the stylesheet. A name has the same one in every chart of the page.

export const COLOURS = 8;

const STATUSES = { success: 0, error: 5, timeout: 2, rate_limited: 3 };

/** A stable colour for a name, the same in every view; `used` keeps names of one chart apart where it can. */
export function colourOf(name, used) {
  if (name in STATUSES && !used.has(STATUSES[name])) return used.add(STATUSES[name]), STATUSES[name];
  let hash = 7;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  for (let shift = 0; shift < COLOURS; shift++) {
    const slot = (hash + shift) % COLOURS;
    if (!used.has(slot)) return used.add(slot), slot;
  }
  return hash % COLOURS;
}
