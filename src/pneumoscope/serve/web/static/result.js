/**
 * The prediction beside the image.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./images.js").ImageList} ImageList
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").OperatingPoint} OperatingPoint
 */

import { byId, h } from "./dom.js";
import { capital, factWords, MARKS, notRuledOut, outcomeOf, probabilityWords, pointWords, shownFindings } from "./words.js";

/** @typedef {{retry: (images: XrayImage[]) => void, remove: (image: XrayImage) => void}} Actions */

export class Result {
  /**
   * @param {ImageList} images
   * @param {Actions} actions
   */
  constructor(images, actions) {
    this._images = images;
    this._actions = actions;
    this._panels = [byId("result-body"), byId("details-body")];
    /** What the panels were built from. @type {unknown[]} */
    this._shown = [];
  }

  /** @param {XrayImage | null} image */
  show(image) {
    if (!image) {
      this._shown = []; // nothing of an image that was removed stays in the page
      for (const panel of this._panels) panel.replaceChildren();
      return;
    }
    const { operatingPoint, bundle } = this._images;
    const { prediction, stage, note } = image;
    const state = [image, prediction, stage, note, operatingPoint, bundle, stage === "failed" && this._failed().length];
    // Other images of a batch change often: new panels each time would take the focus and close the choice.
    if (state.every((value, index) => value === this._shown[index])) return;
    const same = image === this._shown[0];
    this._shown = state;
    const focused = document.activeElement;
    const inside = focused && this._panels.some((panel) => panel.contains(focused));
    this._build(image);
    if (inside) this._focusAgain(focused.id, same);
  }

  /**
   * @param {string} id of the control that had the focus
   * @param {boolean} same whether the panels show the same image as before
   */
  _focusAgain(id, same) {
    // The operating point is that of all images; a button of another image must not be pressed by mistake.
    const control = same || id === "operating-point" ? document.getElementById(id) : null;
    (control ?? byId("result")).focus({ preventScroll: true });
  }

  /** @returns {XrayImage[]} all that were not sent */
  _failed() {
    return this._images.all().filter(({ stage }) => stage === "failed");
  }

  /** @param {XrayImage} image */
  _again(image) {
    if (image.stage !== "failed") return [];
    const one = { type: "button", id: "try-again", onclick: () => this._actions.retry([image]) };
    const all = { type: "button", id: "try-all-again", onclick: () => this._actions.retry(this._failed()) };
    const { length } = this._failed();
    return [h("button", one, "Try again"), length > 1 ? h("button", all, `Try all ${length} again`) : null];
  }

  /** @param {XrayImage} image */
  _build(image) {
    const prediction = this._images.decided(image);
    const outcome = outcomeOf(image, prediction, this._images.bundle);
    const predicted = prediction !== null && prediction.p_target !== null;
    const remove = () => this._actions.remove(image);
    const result = [
      h("p", { class: "file-name" }, image.name),
      h(
        "p",
        { class: "outcome", "data-tone": outcome.tone },
        h("span", { class: "mark", "aria-hidden": "true" }, MARKS[outcome.tone]),
        h("span", {}, outcome.title),
      ),
      outcome.detail ? h("p", { class: "detail" }, outcome.detail) : null,
      ...this._again(image),
      predicted ? likelihoods(prediction, this._images) : null,
    ];
    const button = { type: "button", id: "remove-image", class: "quiet", onclick: remove };
    const details = [
      image.sample ? sampleFacts(image.sample) : null,
      predicted ? operatingPoints(prediction, this._images) : null,
      prediction?.facts ? facts(prediction, this._images) : null,
      h("p", { class: "small" }, h("button", button, "Remove this image")),
    ];
    [result, details].forEach((parts, index) => {
      this._panels[index].replaceChildren(...parts.filter((part) => part !== null));
    });
  }
}

/**
 * @param {Prediction} prediction
 * @param {ImageList} images
 */
function likelihoods(prediction, images) {
  if (!images.bundle) return null;
  const { target, within, others } = shownFindings(images.bundle);
  const rows = [
    bar(target, prediction.p_target, "whole", images.pointOf(prediction)),
    ...[...within, ...others].map((name) => bar(name, prediction.probabilities[name], "part", null)),
  ];
  const possible = notRuledOut(prediction, images.calibrationOf(prediction)?.prediction_sets ?? false);
  return h(
    "section",
    { "aria-label": "Probabilities" },
    h("h3", {}, "Probability"),
    h("dl", { class: "bars" }, ...rows),
    possible ? h("p", { class: "small" }, possible) : null,
  );
}

/**
 * @param {string} name
 * @param {number | null} value
 * @param {"whole" | "part"} size
 * @param {OperatingPoint | null} point
 */
function bar(name, value, size, point) {
  const fill = h("span", { class: "fill" });
  // The content security policy forbids style attributes; setting the property is allowed.
  fill.style.width = `${(value ?? 0) * 100}%`;
  const track = h("span", { class: "track", "aria-hidden": "true" }, fill);
  if (point) {
    const threshold = h("span", { class: "threshold" });
    threshold.style.left = `${point.threshold * 100}%`;
    track.append(threshold);
  }
  return h("div", { class: `bar ${size}` }, h("dt", {}, capital(name)), h("dd", {}, h("b", {}, probabilityWords(value)), track));
}

/**
 * @param {Prediction} prediction
 * @param {ImageList} images
 */
function operatingPoints(prediction, images) {
  const chosen = images.pointOf(prediction);
  if (!chosen) return null;
  const points = images.calibrationOf(prediction)?.operating_points ?? [];
  const choice = h(
    "select",
    {
      id: "operating-point",
      onchange: (/** @type {Event} */ event) => {
        images.setOperatingPoint(/** @type {HTMLSelectElement} */ (event.target).value);
      },
    },
    ...points.map((point) => h("option", { value: point.name, selected: point.name === chosen.name }, point.name)),
  );
  return h(
    "p",
    { class: "point" },
    h("label", { for: "operating-point" }, h("span", { class: "tick", "aria-hidden": "true" }), "Operating point "),
    choice,
    h("span", { class: "small" }, `${capital(pointWords(chosen))}.`),
  );
}

/** @param {import("./samples.js").Sample} sample */
function sampleFacts({ label, content, licence, attribution }) {
  const parts = attribution.includes(licence) ? [attribution] : [attribution, licence];
  const origin = parts.filter((words) => words && words !== "not recorded").join("; ");
  return h(
    "section",
    { "aria-label": "Sample image", class: "sample" },
    h("h3", {}, "Sample image"),
    h("p", {}, "True label: ", h("b", {}, label), `. ${content}`),
    origin ? h("p", { class: "small" }, origin) : null,
  );
}

/**
 * @param {Prediction} prediction
 * @param {ImageList} images
 */
function facts(prediction, images) {
  const pairs = factWords(/** @type {import("./api.js").Facts} */ (prediction.facts));
  const several = prediction.population !== null && (images.bundle?.populations.length ?? 0) > 1;
  return h(
    "section",
    { "aria-label": "The file" },
    h("h3", {}, "From the file"),
    h("dl", { class: "facts" }, ...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("p", { class: "small" }, "Model ", h("code", {}, prediction.bundle)),
    several ? h("p", { class: "small" }, `Thresholds for the population: ${prediction.population}`) : null,
  );
}
