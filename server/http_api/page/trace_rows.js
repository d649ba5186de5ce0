// Which steps of a trace are rows: those whose ancestors are open, or those that match and their ancestors.

const OPEN_ALL = 300; // steps up to which all is open at first
const OPEN_ROWS = 200; // rows that are open at first beyond
const FIRST_ERRORS = 50;

export class Rows {
  constructor(model) {
    this.model = model;
    this.closed = new Uint8Array(model.count);
    this.shown = new Uint32Array(0);
    this.placeOf = new Int32Array(model.count);
    this.only = null;
  }

  /** What is open at first: all of a small trace; of a large one the upper levels, and the ways to the first errors. */
  begin(selected = -1) {
    const { model } = this;
    if (model.count > OPEN_ALL) {
      const perLevel = [];
      for (let at = 0; at < model.count; at++) perLevel[model.depth[at]] = (perLevel[model.depth[at]] ?? 0) + 1;
      let [level, sum] = [0, perLevel[0] ?? 0];
      while (level + 1 < perLevel.length && sum + perLevel[level + 1] <= OPEN_ROWS) sum += perLevel[++level];
      for (let at = 0; at < model.count; at++) this.closed[at] = model.children[at] && model.depth[at] >= level ? 1 : 0;
      let errors = 0;
      for (let at = 0; at < model.count && errors < FIRST_ERRORS; at++) {
        if (!(model.flags[at] & 1)) continue;
        errors += 1;
        this.#openTo(at);
      }
    }
    if (selected >= 0) this.#openTo(selected);
    this.rebuild();
  }

  #openTo(at) {
    for (let up = this.model.parent[at]; up >= 0; up = this.model.parent[up]) this.closed[up] = 0;
  }

  /** Shows only these steps and their ancestors; null: all. `matches` is a Uint8Array. */
  filter(matches) {
    this.only = null;
    if (matches) {
      this.only = new Uint8Array(this.model.count);
      for (let at = this.model.count - 1; at >= 0; at--) {
        if (!matches[at] && !this.only[at]) continue;
        this.only[at] = 1;
        if (this.model.parent[at] >= 0) this.only[this.model.parent[at]] = 1;
      }
    }
    this.rebuild();
  }

  rebuild() {
    const { count } = this.model;
    const found = new Uint32Array(count);
    this.placeOf.fill(-1);
    let rows = 0;
    for (let at = 0; at < count; ) {
      if (this.only && !this.only[at]) {
        at += this.model.size[at];
        continue;
      }
      this.placeOf[at] = rows;
      found[rows++] = at;
      at += this.closed[at] && !this.only ? this.model.size[at] : 1;
    }
    this.shown = found.subarray(0, rows);
  }

  isOpen(at) {
    return Boolean(this.model.children[at]) && (!this.closed[at] || this.only !== null);
  }

  toggle(at, open = Boolean(this.closed[at])) {
    if (!this.model.children[at]) return;
    this.closed[at] = open ? 0 : 1;
    this.rebuild();
  }

  /** Opens the siblings of a step, and itself. */
  openSiblings(at) {
    const { parent, children, size, count } = this.model;
    const up = parent[at];
    const end = up < 0 ? count : up + size[up];
    for (let each = up < 0 ? 0 : up + 1; each < end; each += size[each]) if (children[each]) this.closed[each] = 0;
    this.rebuild();
  }

  collapseAll() {
    for (let at = 0; at < this.model.count; at++) this.closed[at] = this.model.children[at] ? 1 : 0;
    this.rebuild();
  }

  openAll() {
    this.closed.fill(0);
    this.rebuild();
  }

  /** Makes a step a row, whatever was closed above it. */
  reveal(at) {
    if (this.placeOf[at] >= 0) return;
    this.#openTo(at);
    if (this.only && !this.only[at]) this.only = null;
    this.rebuild();
  }
}
