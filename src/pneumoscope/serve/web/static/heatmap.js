/**
 * Heat maps: colours, contour, and how they lie on the image.
 *
 * @typedef {object} HeatLayer
 * @property {string} finding
 * @property {[number, number, number, number]} region top, left, bottom, right, as fractions of the image
 * @property {HTMLCanvasElement} tint colours whose opacity grows with the evidence
 * @property {Path2D} contour in the unit square of the region
 *
 * @typedef {object} Box
 * @property {number} left
 * @property {number} top
 * @property {number} width
 * @property {number} height
 */

import { loadImage, toCanvas } from "./decode.js";

// Opacity grows faster than the evidence, so that the X-ray stays readable under weak evidence.
const FADE = 1.4;
// Pixels; the steps of eight bits would make the contour ragged.
const SMOOTHING = 2;

/** Evidence at which the contour is drawn; 1 is the strongest. */
export const CONTOUR_LEVEL = 0.5;

// Inferno (Smith and van der Walt, 2015): perceptually even, rising in lightness, safe for the colour-blind.
const INFERNO = [
  [0, 0, 4], [11, 7, 36], [33, 12, 74], [61, 9, 101], [87, 16, 110], [113, 25, 110], [138, 34, 106], [163, 44, 97],
  [188, 55, 84], [208, 69, 69], [227, 89, 51], [241, 113, 31], [249, 140, 10], [252, 170, 15], [249, 201, 50],
  [242, 232, 101], [252, 255, 164],
];

/**
 * @param {number} evidence in [0, 1]
 * @returns {[number, number, number]} red, green, blue
 */
export function colour(evidence) {
  const place = Math.min(1, Math.max(0, evidence)) * (INFERNO.length - 1);
  const index = Math.min(INFERNO.length - 2, Math.floor(place));
  const part = place - index;
  const mix = (/** @type {number} */ channel) =>
    Math.round(INFERNO[index][channel] * (1 - part) + INFERNO[index + 1][channel] * part);
  return [mix(0), mix(1), mix(2)];
}

/**
 * @param {import("./api.js").Heatmap | null | undefined} heatmap from the server
 * @returns {Promise<HeatLayer | null>}
 */
export async function heatLayer(heatmap) {
  if (!heatmap?.png) return null;
  const tint = toCanvas(await loadImage(heatmap.png), 512);
  const context = /** @type {CanvasRenderingContext2D} */ (tint.getContext("2d", { willReadFrequently: true }));
  const pixels = context.getImageData(0, 0, tint.width, tint.height);
  const evidence = new Float32Array(tint.width * tint.height);
  const table = Array.from({ length: 256 }, (_, grey) => colour(grey / 255));
  for (let place = 0; place < evidence.length; place += 1) {
    const grey = pixels.data[place * 4];
    evidence[place] = grey / 255;
    pixels.data.set(table[grey], place * 4);
    pixels.data[place * 4 + 3] = 255 * evidence[place] ** FADE;
  }
  context.putImageData(pixels, 0, 0);
  const contour = contourPath(smoothed(evidence, tint.width, tint.height), tint.width, tint.height, CONTOUR_LEVEL);
  return { finding: heatmap.finding, region: heatmap.region, tint, contour };
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {HeatLayer} layer
 * @param {Box} image where the whole image lies on the canvas
 * @param {number} opacity in [0, 1]
 * @param {number} line width of the contour in pixels of the canvas
 */
export function paintHeat(context, layer, image, opacity, line) {
  const [top, left, bottom, right] = layer.region;
  const box = {
    left: image.left + left * image.width,
    top: image.top + top * image.height,
    width: (right - left) * image.width,
    height: (bottom - top) * image.height,
  };
  context.save();
  context.imageSmoothingQuality = "high";
  context.globalAlpha = opacity;
  context.drawImage(layer.tint, box.left, box.top, box.width, box.height);
  const path = new Path2D();
  path.addPath(layer.contour, new DOMMatrix([box.width, 0, 0, box.height, box.left, box.top]));
  context.globalAlpha = Math.min(1, 0.35 + opacity);
  context.lineCap = "round";
  // A dark edge under the light line is visible on lung and on bone.
  context.strokeStyle = "rgb(0 0 0 / 0.55)";
  context.lineWidth = line * 2.5;
  context.stroke(path);
  context.strokeStyle = "#fff3d6";
  context.lineWidth = line;
  context.stroke(path);
  context.restore();
}

/**
 * Draw the colour scale with the contour's level marked.
 *
 * @param {HTMLCanvasElement} canvas
 */
export function paintLegend(canvas) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  for (let x = 0; x < canvas.width; x += 1) {
    context.fillStyle = `rgb(${colour(x / (canvas.width - 1)).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
  context.fillStyle = "#fff3d6";
  context.fillRect(Math.round(CONTOUR_LEVEL * canvas.width) - 1, 0, 2, canvas.height);
}

/**
 * The mean over a small square around each pixel.
 *
 * @param {Float32Array} values row by row
 * @param {number} width
 * @param {number} height
 */
function smoothed(values, width, height) {
  const along = (/** @type {Float32Array} */ from, /** @type {number} */ step, /** @type {number} */ length) => {
    const to = new Float32Array(from.length);
    for (let at = 0; at < from.length; at += 1) {
      const place = Math.floor(at / step) % length;
      let sum = 0;
      for (let off = -SMOOTHING; off <= SMOOTHING; off += 1) {
        sum += from[at + (Math.min(length - 1, Math.max(0, place + off)) - place) * step];
      }
      to[at] = sum / (2 * SMOOTHING + 1);
    }
    return to;
  };
  return along(along(values, 1, width), width, height);
}

/**
 * Where the evidence crosses a level, by marching squares.
 *
 * @param {Float32Array} values row by row
 * @param {number} width
 * @param {number} height
 * @param {number} level
 * @returns {Path2D} in the unit square
 */
function contourPath(values, width, height, level) {
  const path = new Path2D();
  const point = (/** @type {number} */ x, /** @type {number} */ y) => [(x + 0.5) / width, (y + 0.5) / height];
  for (let y = 0; y + 1 < height; y += 1) {
    for (let x = 0; x + 1 < width; x += 1) {
      const at = y * width + x;
      const a = values[at] - level;
      const b = values[at + 1] - level;
      const c = values[at + width + 1] - level;
      const d = values[at + width] - level;
      /** @type {number[][]} */
      const crossings = [];
      if (a >= 0 !== b >= 0) crossings.push(point(x + a / (a - b), y));
      if (b >= 0 !== c >= 0) crossings.push(point(x + 1, y + b / (b - c)));
      if (d >= 0 !== c >= 0) crossings.push(point(x + d / (d - c), y + 1));
      if (a >= 0 !== d >= 0) crossings.push(point(x, y + a / (a - d)));
      for (let index = 0; index + 1 < crossings.length; index += 2) {
        path.moveTo(crossings[index][0], crossings[index][1]);
        path.lineTo(crossings[index + 1][0], crossings[index + 1][1]);
      }
    }
  }
  return path;
}
