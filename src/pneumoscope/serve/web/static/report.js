/**
 * The report: a table of all images where there are several, then one page per image. It is printed from
 * this page, or saved as one self-contained file.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./images.js").ImageList} ImageList
 * @typedef {import("./api.js").Prediction} Prediction
 */

import { imageCanvas } from "./decode.js";
import { byId, download, h, stamp } from "./dom.js";
import { CONTOUR_LEVEL, heatLayer, paintHeat } from "./heatmap.js";
import {
  capital,
  factWords,
  imageWords,
  MARKS,
  notRuledOut,
  outcomeOf,
  probabilityWords,
  pointWords,
  shownFindings,
} from "./words.js";

const SIDE = 900; // pixels on the longer side of an image
const MOST_CLASSES = 4; // columns of classes on a sheet of A4
const OPACITY = 0.6;
const NOTICE = "For research only. Not a medical device, not for diagnosis.";

/**
 * Print the report; the browser can print to a PDF.
 *
 * @param {ImageList} images
 * @param {XrayImage[]} sorted
 */
export async function printReport(images, sorted) {
  const place = byId("report");
  const report = await makeReport(images, sorted);
  if (!sorted.every(({ id }) => images.get(id))) return; // what was cleared meanwhile stays out of the page
  place.replaceChildren(report);
  await Promise.all([...report.querySelectorAll("img")].map((image) => image.decode()));
  window.addEventListener("afterprint", () => place.replaceChildren(), { once: true });
  window.print();
}

/**
 * Save the report as one HTML file.
 *
 * @param {ImageList} images
 * @param {XrayImage[]} sorted
 */
export async function saveReport(images, sorted) {
  const report = await makeReport(images, sorted);
  // The style comes from this package and the report was built from text nodes: joining them as text is safe.
  const text = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pneumoscope report</title>
<style>
${reportStyle()}
</style>
</head>
<body>
${report.outerHTML}
</body>
</html>
`;
  download(`pneumoscope-${stamp()}.html`, new Blob([text], { type: "text/html" }));
}

/** The style of a report as this page has loaded it: saving needs no connection to the server. */
function reportStyle() {
  const sheets = [...document.styleSheets].filter(({ href }) => href?.endsWith("/report.css"));
  return sheets.flatMap(({ cssRules }) => [...cssRules].map(({ cssText }) => cssText)).join("\n");
}

/**
 * @param {ImageList} images
 * @param {XrayImage[]} sorted
 */
async function makeReport(images, sorted) {
  const report = h("main", { class: "report" });
  const when = new Date().toLocaleString();
  if (sorted.length > 1) report.append(overview(images, sorted, when));
  // One after another: a hundred images at full size would fill the memory.
  for (const image of sorted) report.append(await page(images, image, when));
  return report;
}

/**
 * @param {ImageList} images
 * @param {XrayImage[]} sorted
 * @param {string} when
 */
function overview(images, sorted, when) {
  const findings = images.bundle && shownFindings(images.bundle);
  const classes = findings && findings.within.length <= MOST_CLASSES ? findings.within : [];
  const rows = sorted.map((image) => {
    const prediction = images.decided(image);
    const outcome = outcomeOf(image, prediction, images.bundle);
    const values = [prediction?.p_target, ...classes.map((name) => prediction?.probabilities[name])];
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, ...smallImage(image), image.name),
      h("td", {}, `${MARKS[outcome.tone]} ${outcome.short}`),
      ...values.map((value) => h("td", {}, probabilityWords(value))),
    );
  });
  const names = ["image", "prediction", findings?.target ?? "probability", ...classes];
  const heads = names.map((name) => h("th", { scope: "col" }, capital(name)));
  return h(
    "section",
    { class: "sheet" },
    h("h1", {}, `Chest X-rays: ${imageWords(sorted.length)}`),
    h("table", {}, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows)),
    footer(images, when, null),
  );
}

/** @param {XrayImage} image */
function smallImage(image) {
  return image.thumbnail ? [h("img", { src: image.thumbnail.toDataURL("image/jpeg"), alt: "" })] : [];
}

/**
 * @param {ImageList} images
 * @param {XrayImage} image
 * @param {string} when
 */
async function page(images, image, when) {
  const prediction = images.decided(image);
  const outcome = outcomeOf(image, prediction, images.bundle);
  const predicted = prediction !== null && prediction.p_target !== null;
  return h(
    "article",
    { class: "sheet" },
    h("h1", {}, image.name),
    h("p", { class: "outcome", "data-tone": outcome.tone }, `${MARKS[outcome.tone]} ${outcome.title}`),
    outcome.detail ? h("p", {}, outcome.detail) : null,
    await xrays(image),
    predicted ? numbers(images, prediction) : null,
    prediction?.facts
      ? h("p", { class: "facts" }, factWords(prediction.facts).map(([name, value]) => `${name}: ${value}`).join(" · "))
      : null,
    footer(images, when, prediction),
  );
}

/** @param {XrayImage} image */
async function xrays(image) {
  const [canvas, heat] = await Promise.all([imageCanvas(image), heatLayer(image.prediction?.heatmap)]);
  if (!canvas) return null;
  const scale = Math.min(1, SIDE / Math.max(canvas.width, canvas.height));
  const draw = (/** @type {boolean} */ withHeat) => {
    const sheet = document.createElement("canvas");
    sheet.width = Math.round(canvas.width * scale);
    sheet.height = Math.round(canvas.height * scale);
    const context = /** @type {CanvasRenderingContext2D} */ (sheet.getContext("2d"));
    context.imageSmoothingQuality = "high";
    context.drawImage(canvas, 0, 0, sheet.width, sheet.height);
    const box = { left: 0, top: 0, width: sheet.width, height: sheet.height };
    if (withHeat && heat) paintHeat(context, heat, box, OPACITY, 2);
    return sheet.toDataURL("image/jpeg", 0.9);
  };
  const figure = (/** @type {string} */ source, /** @type {string} */ caption) =>
    h("figure", {}, h("img", { src: source, alt: `${caption}: ${image.name}` }), h("figcaption", {}, caption));
  return h(
    "div",
    { class: "images" },
    figure(draw(false), "X-ray"),
    heat ? figure(draw(true), `Evidence for ${heat.finding}; contour at ${CONTOUR_LEVEL}`) : null,
  );
}

/**
 * @param {ImageList} images
 * @param {Prediction} prediction
 */
function numbers(images, prediction) {
  const { bundle } = images;
  if (!bundle) return null;
  const { classes, target } = bundle;
  const others = classes.filter((name) => !target.classes.includes(name));
  const classNames = [...target.classes.filter((name) => name !== target.name), ...others];
  /** @type {[string, number | null][]} */
  const values = [
    [target.name, prediction.p_target],
    ...classNames.map((name) => [name, prediction.probabilities[name]]),
  ];
  const point = images.pointOf(prediction);
  const hasSets = images.calibrationOf(prediction)?.prediction_sets ?? false;
  const several = prediction.population !== null && bundle.populations.length > 1;
  const words = [
    point ? `Operating point ${point.name}: ${pointWords(point)}.` : "",
    several ? `Thresholds for the population: ${prediction.population}.` : "",
    notRuledOut(prediction, hasSets),
  ];
  return h(
    "section",
    {},
    h("dl", {}, ...values.map(([name, value]) => h("div", {}, h("dt", {}, capital(name)), h("dd", {}, probabilityWords(value))))),
    h("p", {}, words.filter(Boolean).join(" ")),
  );
}

/**
 * @param {ImageList} images
 * @param {string} when
 * @param {Prediction | null} prediction
 */
function footer(images, when, prediction) {
  const model = prediction?.bundle ?? images.bundle?.identity ?? "unknown";
  const parts = [`Pneumoscope, model ${model}`, when, prediction?.sha256 ? `image ${prediction.sha256.slice(0, 16)}` : ""];
  return h("footer", {}, h("p", {}, NOTICE), h("p", {}, parts.filter(Boolean).join(" · ")));
}
