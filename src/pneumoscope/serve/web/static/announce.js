/**
 * Tells answers to screen readers: each of a few, the progress of many.
 *
 * @typedef {import("./pictures.js").Pictures} Pictures
 */

import { byId } from "./dom.js";
import { percent, pictureWords, verdict } from "./words.js";

const FEW = 3;
const PAUSE_MS = 3000;
const GATHER_MS = 100;

/** @param {string} text */
export function announce(text) {
  byId("announcements").textContent = text;
}

/** @param {Pictures} pictures */
export function announceAnswers(pictures) {
  /** @type {Set<number>} */
  const told = new Set();
  let last = 0;
  let timer = 0;
  const tell = () => {
    timer = 0;
    const all = pictures.all();
    const answered = all.filter((picture) => picture.stage !== "reading");
    const news = answered.filter((picture) => !told.has(picture.id));
    for (const picture of news) told.add(picture.id);
    const done = answered.length === all.length;
    if (!news.length) return;
    if (all.length <= FEW) {
      announce(news.map((picture) => sentence(pictures, picture)).join(" "));
    } else if (done || Date.now() - last > PAUSE_MS) {
      last = Date.now();
      announce(done ? `All ${pictureWords(all.length)} answered.` : `${answered.length} of ${all.length} answered.`);
    }
  };
  // The answers of a batch come one by one within an instant: they are told together.
  pictures.addEventListener("change", () => {
    timer ||= window.setTimeout(tell, GATHER_MS);
  });
}

/**
 * @param {Pictures} pictures
 * @param {import("./pictures.js").Picture} picture
 */
function sentence(pictures, picture) {
  const answer = pictures.decided(picture);
  const said = verdict(picture, answer);
  const likely = answer && answer.p_pneumonia !== null ? ` Probability of pneumonia ${percent(answer.p_pneumonia)}.` : "";
  return `${picture.name}: ${said.title}.${likely} ${said.detail}`.trim();
}
