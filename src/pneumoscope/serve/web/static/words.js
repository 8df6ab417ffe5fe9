/**
 * What the page says, in plain words.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").Facts} Facts
 * @typedef {import("./api.js").OperatingPoint} OperatingPoint
 *
 * @typedef {"suspected" | "uncertain" | "clear" | "rejected" | "failed" | "reading"} Tone
 *
 * @typedef {object} Outcome
 * @property {Tone} tone
 * @property {string} short for a cell of the worklist
 * @property {string} title one line
 * @property {string} detail what it means or what to do; may be empty
 */

/** Tones from the one that needs a reader's eye most. @type {Tone[]} */
export const TONES = ["suspected", "uncertain", "clear", "rejected", "failed", "reading"];

/** A shape for each tone, so that none is told by its colour alone. @type {Record<Tone, string>} */
export const MARKS = { suspected: "▲", uncertain: "◆", clear: "●", rejected: "■", failed: "✕", reading: "○" };

/** @type {Record<string, string>} */
const REASONS = {
  not_found: "file not found",
  no_permission: "file may not be read",
  empty_file: "empty file",
  file_too_large: "file too large",
  too_many_pixels: "too many pixels",
  not_an_image: "no image",
  truncated: "file cut short",
  corrupt: "damaged file",
  unsupported_encoding: "encoding not supported",
  no_pixels: "no image inside",
  multi_frame: "several frames",
  not_a_chest_radiograph: "not a chest X-ray",
  lateral_view: "lateral view",
  too_small: "too small",
  cropped: "cropped",
  over_exposed: "over-exposed or blank",
  under_exposed: "under-exposed or blank",
  inverted: "a negative, turned",
  adult_unvalidated: "adult: not validated",
  reader_stopped: "reading was stopped",
};

/** @type {Record<string, string>} */
const VIEWS = { PA: "PA (frontal)", AP: "AP (frontal)", LL: "lateral", other: "other" };

/** @param {string} code */
export function reasonWords(code) {
  return REASONS[code] ?? code.replaceAll("_", " ");
}

/**
 * @param {XrayImage} image
 * @param {Prediction | null} prediction decided at the operating point in force
 * @returns {Outcome}
 */
export function outcomeOf(image, prediction) {
  if (image.stage === "failed") {
    return { tone: "failed", short: "Not sent", title: "Not sent", detail: image.note };
  }
  if (!prediction) return { tone: "reading", short: "reading…", title: "Reading…", detail: image.note };
  if (prediction.status !== "ok") {
    const why = prediction.reasons.map(reasonWords).join(", ") || prediction.status;
    return { tone: "rejected", short: `Not predicted: ${why}`, title: `Not predicted: ${why}`, detail: sentence(prediction.message) };
  }
  const suspected = prediction.decision === "pneumonia";
  if (prediction.uncertain) {
    const side = suspected ? "reaches" : "stays below";
    const both = prediction.prediction_set.length > 0;
    const why = both ? "but the model cannot rule out either" : "but the image is like no class";
    return {
      tone: "uncertain",
      short: "Uncertain",
      title: both ? "Uncertain: normal and pneumonia are both possible" : "Uncertain: the image is like no class",
      detail: `The probability ${side} the operating point, ${why}. A reader must decide. ${prediction.message}`.trim(),
    };
  }
  return suspected
    ? { tone: "suspected", short: "Suspected", title: "Pneumonia suspected", detail: prediction.message }
    : { tone: "clear", short: "Not seen", title: "No pneumonia seen", detail: prediction.message };
}

/** @param {string} message */
function sentence(message) {
  if (!message) return "";
  return `${message[0].toUpperCase()}${message.slice(1)}${/[.!?]$/.test(message) ? "" : "."}`;
}

/**
 * @param {Prediction} prediction
 * @param {import("./api.js").Bundle | null} bundle
 */
export function notRuledOut(prediction, bundle) {
  if (prediction.prediction_set.length) return `Not ruled out: ${prediction.prediction_set.join(", ")}.`;
  // An empty set of a model that gives sets is a finding of its own.
  if (!bundle?.conformal) return "";
  return "No class is as probable as it usually is where it is right: read this image with care.";
}

/** @param {number | null | undefined} probability */
export function percent(probability) {
  if (probability === null || probability === undefined) return "–";
  if (probability > 0 && probability < 0.001) return "<0.1%";
  if (probability < 1 && probability > 0.999) return ">99.9%";
  return `${(probability * 100).toFixed(1)}%`;
}

/** @param {OperatingPoint} point */
export function pointWords(point) {
  const measured = [
    point.sensitivity === null ? "" : `sensitivity ${percent(point.sensitivity)}`,
    point.specificity === null ? "" : `specificity ${percent(point.specificity)}`,
  ].filter(Boolean);
  const where = `${percent(point.threshold)} or more counts as suspected`;
  return measured.length ? `${where}; chosen for ${measured.join(", ")}` : where;
}

/**
 * The header facts that matter, as pairs of name and value.
 *
 * @param {Facts} facts
 * @returns {[string, string][]}
 */
export function factWords(facts) {
  /** @type {[string, string | null][]} */
  const pairs = [
    ["View", facts.view && facts.view !== "unknown" ? (VIEWS[facts.view] ?? facts.view) : "not stated"],
    ["Age", facts.age_band || "not stated"],
    ["Size", `${facts.width} × ${facts.height} pixels`],
    ["Format", [facts.format?.toUpperCase(), facts.modality, facts.bits && `${facts.bits} bits`].filter(Boolean).join(", ")],
  ];
  return pairs.map(([name, value]) => [name, value ?? ""]);
}

/**
 * @param {Map<Tone, number>} counts
 * @returns {string} such as "12 suspected, 3 uncertain, 20 clear, 5 not predicted"
 */
export function countWords(counts) {
  /** @type {Record<Tone, string>} */
  const names = {
    suspected: "suspected",
    uncertain: "uncertain",
    clear: "not seen",
    rejected: "not predicted",
    failed: "not sent",
    reading: "being read",
  };
  return TONES.filter((tone) => counts.get(tone))
    .map((tone) => `${counts.get(tone)} ${names[tone]}`)
    .join(", ");
}

/** @param {number} count */
export function imageWords(count) {
  return count === 1 ? "1 image" : `${count} images`;
}
