/**
 * Tells answers to screen readers: each of a few, the progress of many.
 *
 * @typedef {import("./images.js").ImageList} ImageList
 */

import { byId } from "./dom.js";
import { percent, imageWords, outcomeOf } from "./words.js";

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
  const told = new Set();
  let last = 0;
  let timer = 0;
  const tell = () => {
    timer = 0;
    const all = images.all();
    const answered = all.filter((image) => image.stage !== "reading");
    const news = answered.filter((image) => !told.has(image.id));
    for (const image of news) told.add(image.id);
    const done = answered.length === all.length;
    if (!news.length) return;
    if (all.length <= FEW) {
      announce(news.map((image) => sentence(images, image)).join(" "));
    } else if (done || Date.now() - last > PAUSE_MS) {
      last = Date.now();
      announce(done ? `All ${imageWords(all.length)} answered.` : `${answered.length} of ${all.length} answered.`);
    }
  };
  // The answers of a batch come one by one within an instant: they are told together.
  images.addEventListener("change", () => {
    timer ||= window.setTimeout(tell, GATHER_MS);
  });
}

/**
 * @param {ImageList} images
 * @param {import("./images.js").XrayImage} image
 */
function sentence(images, image) {
  const prediction = images.decided(image);
  const outcome = outcomeOf(image, prediction);
  const likely = prediction && prediction.p_pneumonia !== null ? ` Probability of pneumonia ${percent(prediction.p_pneumonia)}.` : "";
  return `${image.name}: ${outcome.title}.${likely} ${outcome.detail}`.trim();
}
