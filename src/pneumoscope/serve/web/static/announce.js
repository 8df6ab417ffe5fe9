/**
 * Tells answers to screen readers: each of a few, the progress of many.
 *
 * @typedef {import("./images.js").Images} Images
 */

import { byId } from "./dom.js";
import { percent, imageWords, verdict } from "./words.js";

const FEW = 3;
const PAUSE_MS = 3000;
const GATHER_MS = 100;

/** @param {string} text */
export function announce(text) {
  byId("announcements").textContent = text;
}

/** @param {Images} images */
export function announceAnswers(images) {
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
 * @param {Images} images
 * @param {import("./images.js").Image} image
 */
function sentence(images, image) {
  const answer = images.decided(image);
  const said = verdict(image, answer);
  const likely = answer && answer.p_pneumonia !== null ? ` Probability of pneumonia ${percent(answer.p_pneumonia)}.` : "";
  return `${image.name}: ${said.title}.${likely} ${said.detail}`.trim();
}
