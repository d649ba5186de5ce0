// Panels that open beside a button: the platform's popovers, placed by the button's rectangle.
import { el } from "./dom.js";

let count = 0;

/** A button with a panel; `fill(panel)` is called each time it opens. Returns {button, panel}; both go into the document. */
export function popover(title, fill, attributes = {}) {
  const id = `pop-${++count}`;
  const panel = el("div", { popover: "auto", id, class: "panel", role: "dialog", "aria-label": attributes["aria-label"] ?? title });
  const button = el("button", { type: "button", popovertarget: id, "aria-haspopup": "dialog", ...attributes }, title);
  panel.addEventListener("beforetoggle", (event) => {
    if (event.newState === "open") fill(panel);
  });
  panel.addEventListener("toggle", (event) => {
    if (event.newState !== "open") return;
    place(panel, button);
    panel.querySelector("input:not([type=hidden]), select, button")?.focus();
  });
  return { button, panel };
}

function place(panel, button) {
  const at = button.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - panel.offsetWidth - 8));
  const below = at.bottom + 4;
  const top = below + panel.offsetHeight > innerHeight - 8 ? Math.max(8, innerHeight - 8 - panel.offsetHeight) : below;
  panel.style.setProperty("--left", `${left}px`);
  panel.style.setProperty("--top", `${top}px`);
}
