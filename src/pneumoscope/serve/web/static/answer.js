/**
 * The answer beside the image.
 *
 * @typedef {import("./images.js").Image} Image
 * @typedef {import("./images.js").Images} Images
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").OperatingPoint} OperatingPoint
 */

import { byId, h } from "./dom.js";
import { factWords, MARKS, notRuledOut, percent, pointWords, verdict } from "./words.js";

/** @typedef {{retry: (image: Image) => void, remove: (image: Image) => void}} Actions */

/**
 * @param {Images} images
 * @param {Image} image
 * @param {Actions} actions
 */
export function showAnswer(images, image, actions) {
  const answer = images.decided(image);
  const said = verdict(image, answer);
  const predicted = answer !== null && answer.p_pneumonia !== null;
  byId("answer-body").replaceChildren(
    ...[
      h("p", { class: "file-name" }, image.name),
      h(
        "p",
        { class: "verdict", "data-tone": said.tone },
        h("span", { class: "mark", "aria-hidden": "true" }, MARKS[said.tone]),
        h("span", {}, said.title),
      ),
      said.detail ? h("p", { class: "detail" }, said.detail) : null,
      image.stage === "failed"
        ? h("button", { type: "button", onclick: () => actions.retry(image) }, "Try again")
        : null,
      predicted ? likelihoods(answer, images) : null,
      predicted ? operatingPoints(images) : null,
      answer?.facts ? facts(answer) : null,
      h(
        "p",
        { class: "small" },
        h("button", { type: "button", class: "quiet", onclick: () => actions.remove(image) }, "Remove this image"),
      ),
    ].filter((part) => part !== null),
  );
}

/**
 * @param {Prediction} answer
 * @param {Images} images
 */
function likelihoods(answer, images) {
  const rows = [
    bar("Pneumonia", answer.p_pneumonia, "whole", images.operatingPoint),
    answer.p_bacterial === null ? null : bar("Bacterial", answer.p_bacterial, "part", null),
    answer.p_viral === null ? null : bar("Viral", answer.p_viral, "part", null),
  ];
  const possible = notRuledOut(answer, images.bundle);
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

/** @param {Images} images */
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

/** @param {Prediction} answer */
function facts(answer) {
  const pairs = factWords(/** @type {import("./api.js").Facts} */ (answer.facts));
  return h(
    "section",
    { "aria-label": "The file" },
    h("h3", {}, "From the file"),
    h("dl", { class: "facts" }, ...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("p", { class: "small" }, "Model ", h("code", {}, answer.bundle)),
  );
}
