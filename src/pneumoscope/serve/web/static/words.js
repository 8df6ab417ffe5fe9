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

const TINY = 1e-9; // smaller shares are written with an exponent

/**
 * Why an image was not read or not predicted and what to do about it; cautions have nothing to do.
 *
 * @type {Record<string, [string, string]>}
 */
const REASONS = {
  not_found: ["file not found", "Choose it again"],
  no_permission: ["no permission to read the file", "Copy it to a place where it may be read"],
  empty_file: ["empty file", "Copy it again from its source"],
  file_too_large: ["file too large", "Export it smaller"],
  too_many_pixels: ["too many pixels", "Export it smaller"],
  not_an_image: ["not an image", "Give a JPEG, PNG, TIFF, BMP, WebP, GIF, JPEG 2000 or DICOM file"],
  truncated: ["file truncated", "Copy it again from its source"],
  corrupt: ["damaged file", "Copy it again from its source"],
  unsupported_encoding: ["encoding not supported", "Export it as PNG or DICOM"],
  no_pixels: ["no image in the file", "Export it again"],
  multi_frame: ["several frames", "Export one image per file"],
  reader_stopped: ["reading was stopped", "Export it smaller"],
  not_a_chest_radiograph: ["not a chest X-ray", "Give a frontal chest X-ray"],
  lateral_view: ["lateral view", "Give the frontal image"],
  too_small: ["too small", "Give the original image"],
  cropped: ["cropped", "Give the whole image"],
  over_exposed: ["over-exposed or blank", "Give the original, or repeat the exposure"],
  under_exposed: ["under-exposed or blank", "Give the original, or repeat the exposure"],
  inverted: ["inverted grayscale, corrected", ""],
  rotated: ["rotated, predicted upright", ""],
  grey_levels_restored: ["grey levels taken from the stored values", ""],
  body_part_mismatch: ["header states another body part", ""],
  lungs_cut_off: ["lungs cut off at the edge of the image", ""],
  population_not_validated: ["model not validated on this age or view", ""],
};

/** @type {Record<string, string>} */
const VIEWS = { PA: "PA (frontal)", AP: "AP (frontal)", LL: "lateral", other: "other" };

/** @param {string} code */
function reasonWords(code) {
  return REASONS[code]?.[0] ?? code.replaceAll("_", " ");
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
    // A caution about a prediction is not why there is none.
    const causes = prediction.reasons.filter((code) => REASONS[code]?.[1] !== "");
    const why = (causes.length ? causes : prediction.reasons).map(reasonWords).join(", ");
    const short = [capital(status), why].filter(Boolean).join(": ");
    const advice = prediction.reasons.map((code) => REASONS[code]?.[1]).find(Boolean);
    const title = advice ? `${short}. ${advice}` : short;
    return { tone: "rejected", short, title, detail: sentence(message) };
  }
  if (prediction.uncertain) return uncertainOutcome(prediction, bundle);
  const suspected = prediction.decision === target;
  const title = suspected ? capital(`${target} suspected`) : `No ${target} detected`;
  return { tone: suspected ? "suspected" : "clear", short: title, title, detail: message };
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
  return p_target === null ? "" : ` Probability of ${target} ${probabilityWords(p_target)}.`;
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

/**
 * A predicted probability in percent, which is never certain: not 0.0% and not 100.0%.
 *
 * @param {number | null | undefined} probability
 */
export function probabilityWords(probability) {
  if (probability === null || probability === undefined) return "–";
  if (probability < 0.001) return "<0.1%";
  if (probability > 0.999) return ">99.9%";
  return percent(probability);
}

/**
 * A share in percent, with as many digits as tell it from 0 and from 1.
 *
 * @param {number} share
 */
function percent(share) {
  if (share > 0 && share < TINY) return `${(share * 100).toExponential(1)}%`;
  const nearest = Math.min(share, 1 - share);
  const digits = nearest > 0 && nearest < 0.001 ? Math.max(3, -1 - Math.floor(Math.log10(nearest))) : 1;
  return `${(share * 100).toFixed(digits)}%`;
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
