// Questions that somebody has saved, in this browser only.

const SLOT = "spendstream.questions";

/** Name -> hash, as saved; {} where nothing is, or where storage is switched off. */
export function saved() {
  try {
    const found = JSON.parse(localStorage.getItem(SLOT) ?? "{}");
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

function write(all) {
  try {
    localStorage.setItem(SLOT, JSON.stringify(all));
    return true;
  } catch {
    return false; // storage is switched off
  }
}

export const keep = (name, hash) => write({ ...saved(), [name]: hash });

export function forget(name) {
  const { [name]: _, ...others } = saved();
  return write(others);
}
