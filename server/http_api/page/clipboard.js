// Copying. Over plain http browsers have no clipboard for pages: then the text is selected, and the person presses Ctrl+C.
import { el, write } from "./dom.js";

let box = null;

/** Copies text; where the browser does not let the page, shows it selected with a line that says what to press. */
export async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    if (said) flash(said, "Copied");
  } catch {
    offer(text, said);
  }
}

function flash(element, text) {
  const before = element.dataset.before ?? element.textContent;
  element.dataset.before = before;
  write(element, text);
  clearTimeout(Number(element.dataset.timer));
  element.dataset.timer = setTimeout(() => {
    write(element, before);
    delete element.dataset.before;
  }, 1500);
}

function offer(text, back) {
  box?.remove();
  const field = el("textarea", { readonly: true, rows: "6", "aria-label": "Text to copy" });
  field.value = text;
  const close = el("button", { type: "button" }, "Close");
  box = el("dialog", { class: "copy-box", "aria-label": "Copy" }, el("p", {}, "This browser does not let the page copy: press Ctrl+C."), field, close);
  close.addEventListener("click", () => box.close());
  box.addEventListener("close", () => {
    box.remove();
    back?.focus();
  });
  document.body.append(box);
  box.showModal();
  field.focus();
  field.select();
}

/** A button that copies what `read` returns. */
export function copyButton(title, read, attributes = {}) {
  const made = el("button", { type: "button", class: "small", ...attributes }, title);
  made.addEventListener("click", () => copy(read(), made));
  return made;
}

/** Has the browser save text as a file. */
export function save(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
