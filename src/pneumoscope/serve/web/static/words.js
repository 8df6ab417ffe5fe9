/**
 * The texts of the page. Names of findings come from the model.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").Bundle} Bundle
 * @typedef {import("./api.js").Facts} Facts
 * @typedef {import("./api.js").Estimate} Estimate
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

/** Tones in the order in which a reader should look at them. @type {Tone[]} */
export const TONES = ["suspected", "uncertain", "clear", "rejected", "failed", "reading"];

/** A shape for each tone, so that colour is not the only difference. @type {Record<Tone, string>} */
export const MARKS = { suspected: "▲", uncertain: "◆", clear: "●", rejected: "■", failed: "✕", reading: "○" };

/** @type {Record<string, string>} */
const REASONS = {
  not_found: "file not found",
  no_permission: "no permission to read the file",
  empty_file: "empty file",
  file_too_large: "file too large",
  too_many_pixels: "too many pixels",
  not_an_image: "not an image",
  truncated: "file truncated",
  corrupt: "damaged file",
  unsupported_encoding: "encoding not supported",
  no_pixels: "no image in the file",
  multi_frame: "several frames",
  not_a_chest_radiograph: "not a chest X-ray",
  lateral_view: "lateral view",
  too_small: "too small",
  cropped: "cropped",
  over_exposed: "over-exposed or blank",
  under_exposed: "under-exposed or blank",
  inverted: "inverted grayscale, corrected",
  grey_levels_restored: "grey levels taken from the stored values",
  body_part_mismatch: "header states another body part",
  population_not_validated: "model not evaluated on this age or view",
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
 * @param {Prediction | null} prediction decided at the chosen operating point
 * @param {Bundle | null} bundle
 * @returns {Outcome}
 */
export function outcomeOf(image, prediction, bundle) {
  if (image.stage === "failed") {
    return { tone: "failed", short: "Not sent", title: "Not sent", detail: image.note };
  }
  if (!prediction) return { tone: "reading", short: "reading…", title: "Reading…", detail: image.note };
  const { status, target, message } = prediction;
  if (status !== "ok") {
    const why = prediction.reasons.map(reasonWords).join(", ");
    const title = [capital(status), why].filter(Boolean).join(": ");
    return { tone: "rejected", short: title, title, detail: sentence(message) };
  }
  if (prediction.uncertain) return uncertainOutcome(prediction, bundle);
  return prediction.decision === target
    ? { tone: "suspected", short: "Suspected", title: capital(`${target} suspected`), detail: message }
    : { tone: "clear", short: "Not detected", title: `No ${target} detected`, detail: message };
}

/**
 * @param {Prediction} prediction
 * @param {Bundle | null} bundle
 * @returns {Outcome}
 */
function uncertainOutcome({ target, decision, prediction_set, message }, bundle) {
  const side = decision === target ? "reaches" : "is below";
  const others = prediction_set.filter((name) => name !== target && !bundle?.target.classes.includes(name));
  const title = others.length
    ? `${others.join(" or ")} and ${target} are both possible`
    : "no class is sufficiently probable";
  const why = others.length ? "but the model can rule out neither" : "but no class is sufficiently probable";
  const detail = `The probability ${side} the operating point, ${why}. A reader must decide. ${message}`.trim();
  return { tone: "uncertain", short: "Uncertain", title: `Uncertain: ${title}`, detail };
}

/** @param {string} text */
export function capital(text) {
  return text && text[0].toLocaleUpperCase() + text.slice(1);
}

/** @param {string} message */
function sentence(message) {
  return message && `${capital(message)}${/[.!?]$/.test(message) ? "" : "."}`;
}

/**
 * The probabilities to show: the target, its classes unless it is one itself, and the others if several.
 *
 * @param {Bundle} bundle
 * @returns {{target: string, within: string[], others: string[]}}
 */
export function shownFindings({ classes, target }) {
  const others = classes.filter((name) => !target.classes.includes(name));
  return {
    target: target.name,
    within: target.classes.length > 1 || target.classes[0] !== target.name ? target.classes : [],
    others: others.length > 1 ? others : [],
  };
}

/**
 * @param {Prediction} prediction
 * @returns {string} a sentence to add to the description of an image; may be empty
 */
export function likelihoodWords({ target, p_target }) {
  return p_target === null ? "" : ` Probability of ${target} ${percent(p_target)}.`;
}

/**
 * @param {Prediction} prediction
 * @param {boolean} hasSets whether the model gives prediction sets
 */
export function notRuledOut(prediction, hasSets) {
  if (prediction.prediction_set.length) return `Not ruled out: ${prediction.prediction_set.join(", ")}.`;
  // An empty set is information only where the model gives sets.
  return hasSets ? "No class is sufficiently probable: read this image with care." : "";
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
  const measured = [measure("sensitivity", point.sensitivity), measure("specificity", point.specificity)];
  const threshold = `suspected at ${percent(point.threshold)} or more`;
  return [threshold, measured.filter(Boolean).join(", ")].filter(Boolean).join("; ");
}

/**
 * @param {string} name
 * @param {Estimate | null} estimate
 */
function measure(name, estimate) {
  if (estimate === null || estimate.value === null) return "";
  const { value, low, high } = estimate;
  const interval = low === null || high === null ? "" : ` (95% CI ${percent(low)} to ${percent(high)})`;
  return `${name} ${percent(value)}${interval}`;
}

/**
 * The facts of a file, as pairs of name and value.
 *
 * @param {Facts} facts
 * @returns {[string, string][]}
 */
export function factWords(facts) {
  const format = [facts.format?.toUpperCase(), facts.modality, facts.bits && `${facts.bits} bits`];
  return [
    ["View", facts.view && facts.view !== "unknown" ? (VIEWS[facts.view] ?? facts.view) : "not stated"],
    ["Age", facts.age_band || "not stated"],
    ["Size", `${facts.width} × ${facts.height} pixels`],
    ["Format", format.filter(Boolean).join(", ")],
  ];
}

/**
 * @param {Map<Tone, number>} counts
 * @returns {string} such as "12 suspected, 3 uncertain, 20 not detected, 5 not predicted"
 */
export function countWords(counts) {
  /** @type {Record<Tone, string>} */
  const names = {
    suspected: "suspected",
    uncertain: "uncertain",
    clear: "not detected",
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
