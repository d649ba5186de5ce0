// Before anything is drawn: light or dark, if this browser was told so. Not a module, so that it runs first.
"use strict";
try {
  const wanted = localStorage.getItem("spendstream.theme");
  if (wanted === "light" || wanted === "dark") document.documentElement.dataset.theme = wanted;
} catch {
  // storage is switched off: the system's theme it is
}
