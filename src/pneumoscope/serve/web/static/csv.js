/**
 * The worklist as CSV: the columns of every table of results, in the same order.
 *
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").Bundle} Bundle
 */

const DECIMALS = 6;

// A spreadsheet runs a cell that starts with one of these as a formula (OWASP, CSV Injection).
const FORMULA_START = /^[=+\-@\t\r\n]/;

/**
 * @param {Prediction[]} predictions
 * @param {Bundle} bundle
 * @returns {string}
 */
export function toCsv(predictions, bundle) {
  const rows = predictions.map((prediction) => record(prediction, bundle));
  const heads = columns(bundle).map(text);
  return [heads, ...rows].map((row) => `${row.join(",")}\n`).join("");
}

/** @param {Bundle} bundle */
function columns({ classes, target }) {
  const probabilities = [...classes, ...(classes.includes(target.name) ? [] : [target.name])];
  return [
    "path",
    "status",
    "reasons",
    ...probabilities.map((name) => `p_${name.trim().replace(/[^\p{L}\p{N}_]+/gu, "_")}`),
    "finding",
    "decision",
    "operating_point",
    "population",
    "prediction_set",
    "bundle",
    "uncertain",
  ];
}

/**
 * @param {Prediction} one
 * @param {Bundle} bundle
 */
function record(one, { classes, target }) {
  return [
    one.path,
    one.status,
    one.reasons,
    ...classes.map((name) => one.probabilities[name]),
    ...(classes.includes(target.name) ? [] : [one.p_target]),
    one.finding,
    one.decision,
    one.operating_point,
    one.population,
    one.prediction_set,
    one.bundle,
    one.uncertain,
  ].map(cell);
}

/** @param {unknown} value */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return value.toFixed(DECIMALS);
  return text(Array.isArray(value) ? value.join(";") : String(value));
}

/** @param {string} value */
function text(value) {
  const safe = FORMULA_START.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
