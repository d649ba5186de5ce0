// Tables as CSV (RFC 4180). A cell that a spreadsheet would run as a formula gets a quote before it.

const RUN = /^[=+\-@\t\r\n]/;
const NUMBER = /^-?\d+(\.\d+)?$/;

function cell(value) {
  if (value === null || value === undefined) return "";
  const text = RUN.test(value) && !NUMBER.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The text of rows, each a list of cells: text, or null for none. */
export const csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
