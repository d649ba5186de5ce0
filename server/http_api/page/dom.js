// The few means by which anything gets on the page. Text is text: nothing here, or anywhere, reads markup.

export const $ = (id) => document.getElementById(id);

/** An element: attributes, then children that are nodes or text. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Sets an element's text, and only if it is another: what did not change is not drawn or read out again. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A sum of dollars, with the digits after the cents smaller. */
export function writeMoney(element, [main, rest]) {
  if (element.textContent === main + rest) return;
  element.replaceChildren(main, ...(rest ? [el("wbr"), el("small", {}, rest)] : []));
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/**
 * A function that focuses an element later, once an answer is there: it does so only if the focus is still where it is
 * now, or nowhere. Who has gone into another field meanwhile may be typing.
 */
export function focusLater() {
  const had = document.activeElement;
  return (element, options) => {
    if ([had, document.body].includes(document.activeElement)) element?.focus(options);
  };
}
