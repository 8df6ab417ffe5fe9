/**
 * The prediction beside the image.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./images.js").ImageList} ImageList
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").OperatingPoint} OperatingPoint
 */

import { byId, h } from "./dom.js";
import { factWords, MARKS, notRuledOut, percent, pointWords, outcomeOf } from "./words.js";

/** @typedef {{retry: (image: XrayImage) => void, remove: (image: XrayImage) => void}} Actions */

/**
 * @param {ImageList} images
 * @param {XrayImage} image
 * @param {Actions} actions
 */
export function showResult(images, image, actions) {
  const prediction = images.decided(image);
  const outcome = outcomeOf(image, prediction);
  const predicted = prediction !== null && prediction.p_pneumonia !== null;
  byId("result-body").replaceChildren(
    ...[
      h("p", { class: "file-name" }, image.name),
      h(
        "p",
        { class: "outcome", "data-tone": outcome.tone },
        h("span", { class: "mark", "aria-hidden": "true" }, MARKS[outcome.tone]),
        h("span", {}, outcome.title),
      ),
      outcome.detail ? h("p", { class: "detail" }, outcome.detail) : null,
      image.stage === "failed"
        ? h("button", { type: "button", onclick: () => actions.retry(image) }, "Try again")
        : null,
      predicted ? likelihoods(prediction, images) : null,
      predicted ? operatingPoints(images) : null,
      prediction?.facts ? facts(prediction) : null,
      h(
        "p",
        { class: "small" },
        h("button", { type: "button", class: "quiet", onclick: () => actions.remove(image) }, "Remove this image"),
      ),
    ].filter((part) => part !== null),
  );
}

/**
 * @param {Prediction} prediction
 * @param {ImageList} images
 */
function likelihoods(prediction, images) {
  const rows = [
    bar("Pneumonia", prediction.p_pneumonia, "whole", images.operatingPoint),
    prediction.p_bacterial === null ? null : bar("Bacterial", prediction.p_bacterial, "part", null),
    prediction.p_viral === null ? null : bar("Viral", prediction.p_viral, "part", null),
  ];
  const possible = notRuledOut(prediction, images.bundle);
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
 * @param {"whole" | "part"} kind
 * @param {OperatingPoint | null} point
 */
function bar(name, value, kind, point) {
  const fill = h("span", { class: "fill" });
  // The style attribute is closed by the content security policy; the property is not.
  fill.style.width = `${(value ?? 0) * 100}%`;
  const track = h("span", { class: "track", "aria-hidden": "true" }, fill);
  if (point) {
    const threshold = h("span", { class: "threshold" });
    threshold.style.left = `${point.threshold * 100}%`;
    track.append(threshold);
  }
  return h("div", { class: `bar ${kind}` }, h("dt", {}, name), h("dd", {}, h("b", {}, percent(value)), track));
}

/** @param {ImageList} images */
function operatingPoints(images) {
  const { bundle, operatingPoint } = images;
  if (!bundle || !operatingPoint) return null;
  const choice = h(
    "select",
    {
      id: "operating-point",
      onchange: (/** @type {Event} */ event) => {
        images.setOperatingPoint(/** @type {HTMLSelectElement} */ (event.target).value);
        byId("operating-point").focus(); // the panel was made anew
      },
    },
    ...bundle.operating_points.map((point) =>
      h("option", { value: point.name, selected: point.name === operatingPoint.name }, point.name),
    ),
  );
  return h(
    "p",
    { class: "point" },
    h("label", { for: "operating-point" }, h("span", { class: "tick", "aria-hidden": "true" }), "Operating point "),
    choice,
    h("span", { class: "small" }, `${pointWords(operatingPoint)}.`),
  );
}

/** @param {Prediction} prediction */
function facts(prediction) {
  const pairs = factWords(/** @type {import("./api.js").Facts} */ (prediction.facts));
  return h(
    "section",
    { "aria-label": "The file" },
    h("h3", {}, "From the file"),
    h("dl", { class: "facts" }, ...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("p", { class: "small" }, "Model ", h("code", {}, prediction.bundle)),
  );
}
