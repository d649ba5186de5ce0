// Asks for the modules of the view in the address while those of the page come: else each would be asked for only once
// the one that imports it is there. Not a module itself, so that it runs first.
"use strict";
try {
  const { src, dataset } = document.currentScript;
  const view = /^#?\/?([^/?]*)/.exec(location.hash)[1];
  const isSignedIn = sessionStorage.getItem("spendstream.key") !== null;
  for (const name of (isSignedIn && JSON.parse(dataset.modules)[view]) || []) {
    const link = document.createElement("link");
    link.rel = "modulepreload";
    link.href = new URL(name, src).href;
    document.head.append(link);
  }
} catch {
  // storage is switched off: the modules come one after the other
}
