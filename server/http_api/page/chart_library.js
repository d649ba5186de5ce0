// uPlot comes after the modules, so that what a view asks the server does not wait for it.

/** Whether uPlot may still come; then `draw` is called once it has, or has failed to. */
export function libraryComes(draw) {
  const comes = !window.uPlot && document.readyState !== "complete";
  if (comes) addEventListener("load", draw, { once: true });
  return comes;
}
