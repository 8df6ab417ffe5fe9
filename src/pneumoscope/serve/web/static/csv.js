/**
 * The worklist as CSV: the columns of every table of results, in their order.
 *
 * @typedef {import("./api.js").Prediction} Prediction
 */

/** @type {(keyof Prediction)[]} */
export const COLUMNS = [
  "path",
  "status",
  "reasons",
  "p_normal",
  "p_bacterial",
  "p_viral",
  "p_pneumonia",
  "finding",
  "decision",
  "operating_point",
  "prediction_set",
  "bundle",
  "uncertain",
];

const DECIMALS = 6;

// A spreadsheet runs a cell that starts with one of these as a formula (OWASP, CSV Injection).
const FORMULA_START = /^[=+\-@\t\r\n]/;

/**
 * @param {Prediction[]} predictions
 * @returns {string}
 */
export function toCsv(predictions) {
  const rows = predictions.map((prediction) => COLUMNS.map((name) => cell(prediction[name])));
  return [COLUMNS, ...rows].map((row) => `${row.join(",")}\n`).join("");
}

/** @param {unknown} value */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return value.toFixed(DECIMALS);
  const text = Array.isArray(value) ? value.join(";") : String(value);
  const safe = FORMULA_START.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
