/**
 * Tells answers to screen readers: each of a few, the progress of many.
 *
 * @typedef {import("./pictures.js").Pictures} Pictures
 */

import { byId } from "./dom.js";
import { percent, pictureWords, verdict } from "./words.js";

const FEW = 3;
const PAUSE_MS = 3000;

/** @param {string} text */
export function announce(text) {
  byId("announcements").textContent = text;
}

/** @param {Pictures} pictures */
export function announceAnswers(pictures) {
  /** @type {Set<number>} */
  const told = new Set();
  let last = 0;
  pictures.addEventListener("change", (event) => {
    const ids = /** @type {CustomEvent<number[]>} */ (event).detail;
    const news = ids.filter((id) => !told.has(id) && (pictures.get(id)?.stage ?? "reading") !== "reading");
    for (const id of news) told.add(id);
    const all = pictures.all();
    const done = all.filter((picture) => picture.stage !== "reading").length;
    if (!news.length) return;
    if (all.length <= FEW) {
      announce(news.map((id) => sentence(pictures, id)).join(" "));
    } else if (done === all.length || Date.now() - last > PAUSE_MS) {
      last = Date.now();
      announce(done === all.length ? `All ${pictureWords(done)} answered.` : `${done} of ${all.length} answered.`);
    }
  });
}

/**
 * @param {Pictures} pictures
 * @param {number} id
 */
function sentence(pictures, id) {
  const picture = pictures.get(id);
  if (!picture) return "";
  const answer = pictures.decided(picture);
  const said = verdict(picture, answer);
  const likely = answer && answer.p_pneumonia !== null ? ` Probability of pneumonia ${percent(answer.p_pneumonia)}.` : "";
  return `${picture.name}: ${said.title}.${likely} ${said.detail}`.trim();
}
