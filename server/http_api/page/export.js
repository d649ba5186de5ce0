// All events of a list as a file: streamed to the disk where the browser can, else the line of curl that does it.
import { address, request } from "./api.js";
import { copyButton } from "./clipboard.js";
import { el, show, write } from "./dom.js";
import { asCurl } from "./examples.js";
import { compact, count } from "./exact.js";
import { popover } from "./popover.js";

const FORMATS = { csv: "CSV", parquet: "Parquet", ndjson: "NDJSON" };
const ROWS = "x-rows-expected";

/**
 * A button with a panel that exports what `pairs()` asks of the events, as pairs of parameters. `signal()` ends a
 * download. Returns {button, panel}; both go into the document.
 */
export function exporter(pairs, signal) {
  return popover("Export", (panel) => fill(panel, pairs(), signal()));
}

function fill(panel, pairs, signal) {
  const choice = el("select", { id: "export-format" }, ...Object.entries(FORMATS).map(([value, text]) => el("option", { value }, text)));
  const path = () => address("/v1/export", [["format", choice.value], ...pairs]);
  const said = el("p", { class: "hint", role: "status" });
  const parts = [el("label", { for: "export-format" }, "Format"), choice, said];
  if (!window.showSaveFilePicker) {
    const line = el("code");
    const draw = () => write(line, curl(path(), choice.value));
    choice.addEventListener("change", draw);
    draw();
    write(said, "This browser cannot write a download with a key to the disk piece by piece. This line does:");
    panel.replaceChildren(...parts, el("pre", { tabindex: "0", "aria-label": "A curl command that exports" }, line), copyButton("Copy", () => line.textContent));
    return;
  }
  const start = el("button", { type: "button", class: "primary" }, "Save…");
  const stop = el("button", { type: "button" }, "Stop");
  show(stop, false);
  write(said, "All events of this range and these filters, with all their fields, as they are at one moment.");
  start.addEventListener("click", async () => {
    const own = new AbortController();
    stop.onclick = () => own.abort();
    show(stop, true);
    start.disabled = true;
    await download(path(), choice.value, AbortSignal.any([signal, own.signal]), (text) => write(said, text));
    show(stop, false);
    start.disabled = false;
  });
  panel.replaceChildren(...parts, el("div", { class: "row" }, start, stop));
}

const nameOf = (format) => `spendstream-events.${format}`;

const curl = (path, format) => `${asCurl(path)} --fail --output ${nameOf(format)}`;

/** Writes the answer to a file that the person chooses. A download that breaks leaves no file that looks whole. */
async function download(path, format, signal, say) {
  let file = null;
  try {
    const handle = await window.showSaveFilePicker({ suggestedName: nameOf(format) });
    say("Asking…");
    const response = await request(path, { signal });
    const rows = response.headers.get(ROWS);
    file = await handle.createWritable();
    let bytes = 0;
    const counted = new TransformStream({
      transform(chunk, controller) {
        bytes += chunk.byteLength;
        say(`${compact(String(bytes))} bytes written…`);
        controller.enqueue(chunk);
      },
    });
    await response.body.pipeThrough(counted).pipeTo(file, { signal }); // closes the file, or gives it up
    say(`Saved: ${rows === null ? "" : `${count(rows)} events, `}${count(String(bytes))} bytes.`);
  } catch (error) {
    if (error.name !== "AbortError") return say(`Not saved: ${error.message}. Try it again.`);
    say(file || signal.aborted ? "Stopped: nothing was saved." : "");
  }
}
