/**
 * Announces results to screen readers: each one where they are few, the progress where they are many.
 *
 * @typedef {import("./images.js").ImageList} ImageList
 */

import { byId } from "./dom.js";
import { imageWords, likelihoodWords, outcomeOf } from "./words.js";

const FEW = 3;
const PAUSE_MS = 3000;
const GATHER_MS = 100;

/** @param {string} text */
export function announce(text) {
  byId("announcements").textContent = text;
}

/** @param {ImageList} images */
export function announceResults(images) {
  /** @type {Set<number>} */
  const announced = new Set();
  let last = 0;
  let timer = 0;
  const report = () => {
    timer = 0;
    const all = images.all();
    const done = all.filter((image) => image.stage !== "reading");
    const fresh = done.filter((image) => !announced.has(image.id));
    for (const image of fresh) announced.add(image.id);
    const complete = done.length === all.length;
    if (!fresh.length) return;
    if (all.length <= FEW) {
      announce(fresh.map((image) => sentence(images, image)).join(" "));
    } else if (complete || Date.now() - last > PAUSE_MS) {
      last = Date.now();
      announce(complete ? `All ${imageWords(all.length)} done.` : `${done.length} of ${all.length} done.`);
    }
  };
  // The results of a batch arrive within an instant: they are announced together.
  images.addEventListener("change", (event) => {
    for (const id of /** @type {CustomEvent<number[]>} */ (event).detail) {
      // What is sent once more has a result to announce once more.
      if (images.get(id)?.stage === "reading") announced.delete(id);
    }
    timer ||= window.setTimeout(report, GATHER_MS);
  });
}

/**
 * @param {ImageList} images
 * @param {import("./images.js").XrayImage} image
 */
function sentence(images, image) {
  const prediction = images.decided(image);
  const outcome = outcomeOf(image, prediction, images.bundle);
  const likelihood = prediction ? likelihoodWords(prediction) : "";
  return `${image.name}: ${outcome.title}.${likelihood} ${outcome.detail}`.trim();
}
