/** Puts the page together. */

import { announce, announceAnswers } from "./announce.js";
import { showAnswer } from "./answer.js";
import { Api } from "./api.js";
import { toCsv } from "./csv.js";
import { Thumbnails } from "./decode.js";
import { askForToken, confirmClearing, showKeys } from "./dialogs.js";
import { byId, download, stamp } from "./dom.js";
import { zoomIn, zoomOut } from "./gestures.js";
import { listenForPictures } from "./intake.js";
import { listenForKeys } from "./keys.js";
import { Pictures } from "./pictures.js";
import { Reading } from "./reading.js";
import { printReport, saveReport } from "./report.js";
import { Uploads } from "./uploads.js";
import { pictureWords } from "./words.js";
import { Worklist } from "./worklist.js";

/** @typedef {import("./pictures.js").Picture} Picture */

const api = new Api(askForToken);
const pictures = new Pictures();
const uploads = new Uploads(api, pictures);
const reading = new Reading();
const worklist = new Worklist(pictures, choose);
const thumbnails = new Thumbnails((picture, thumbnail) => pictures.update(picture.id, { thumbnail }));
const narrow = window.matchMedia("(max-width: 63.99rem)");

/** @type {number | null} */
let chosen = null;
/** Until a person chooses, the page shows the most suspicious picture. */
let chosenByHand = false;
let frame = 0;

/** @param {File[]} files */
function take(files) {
  const added = pictures.add(files);
  announce(`Reading ${pictureWords(added.length)}.`);
  if (pictures.size === added.length) chosenByHand = false;
  if (!chosenByHand) chosen = added[0].id;
  for (const picture of added) thumbnails.make(picture);
  uploads.send(added);
}

/**
 * @param {number} id
 * @param {boolean} open go to the picture as well
 */
function choose(id, open) {
  chosen = id;
  chosenByHand = true;
  render();
  if (open || narrow.matches) reading.focus();
}

/** @param {number} step */
function move(step) {
  const id = worklist.neighbour(step);
  if (id === null) return;
  const inList = worklist.hasFocus;
  chosen = id;
  chosenByHand = true;
  render();
  worklist.reveal(id);
  if (inList) worklist.focus(id);
}

function render() {
  cancelAnimationFrame(frame);
  frame = 0;
  const all = pictures.all();
  const done = all.filter((one) => one.stage !== "reading").length;
  if (!pictures.get(chosen) || (!chosenByHand && done === all.length)) chosen = worklist.sorted()[0]?.id ?? null;
  const picture = pictures.get(chosen);
  document.body.dataset.pictures = ["none", "one", "many"][Math.min(2, all.length)];
  for (const id of ["export", "print", "save", "clear"]) byId(id).toggleAttribute("hidden", !all.length);
  const answered = all.filter((one) => one.answer !== null);
  for (const id of ["export", "print", "save"]) {
    /** @type {HTMLButtonElement} */ (byId(id)).disabled = !answered.length;
  }
  const progress = /** @type {HTMLProgressElement} */ (byId("progress"));
  progress.max = Math.max(1, all.length);
  progress.value = done;
  progress.hidden = done === all.length;
  worklist.render(chosen);
  if (picture) showAnswer(pictures, picture, { retry: (one) => uploads.again(one), remove });
  reading.show(picture, picture && pictures.decided(picture));
}

/** @param {Picture} picture */
function remove(picture) {
  const next = worklist.neighbour(1);
  chosen = next === picture.id ? worklist.neighbour(-1) : next;
  pictures.remove(picture.id);
  announce(`Removed ${picture.name}.`);
}

async function clear() {
  if (pictures.size > 1 && !(await confirmClearing())) return;
  uploads.cancel();
  pictures.clear();
  byId("report").replaceChildren();
  announce("Cleared. Nothing of the pictures is left.");
}

function exportCsv() {
  const rows = worklist.sorted().map((picture) => pictures.decided(picture));
  const answers = /** @type {import("./api.js").Prediction[]} */ (rows.filter((row) => row !== null));
  download(`pneumoscope-${stamp()}.csv`, new Blob([toCsv(answers)], { type: "text/csv" }));
  const left = rows.length - answers.length;
  announce(`Saved ${pictureWords(answers.length)}${left ? `; ${left} without an answer left out` : ""}.`);
}

/** Name the model in the heading; a guarded server asks for its token at this first call. */
async function introduceModel() {
  pictures.addEventListener("bundle", () => {
    byId("model").textContent = ` ${pictures.bundle?.identity ?? ""}`;
  });
  try {
    pictures.setBundle(await api.bundle());
  } catch (error) {
    // Not fatal: the first answer names the model too, and a server that is away is told of then.
    announce(error instanceof Error ? `The model is not known yet: ${error.message}` : "");
  }
}

/**
 * Run a slow command with its button at rest.
 *
 * @param {string} id
 * @param {() => Promise<void> | void} command
 */
function onClick(id, command) {
  const button = /** @type {HTMLButtonElement} */ (byId(id));
  button.addEventListener("click", async () => {
    button.setAttribute("aria-busy", "true");
    try {
      await command();
    } finally {
      button.removeAttribute("aria-busy");
    }
  });
}

pictures.addEventListener("change", (event) => {
  for (const id of /** @type {CustomEvent<number[]>} */ (event).detail) {
    const picture = pictures.get(id);
    if (picture?.answer?.preview && !picture.thumbnail) thumbnails.make(picture);
  }
  frame ||= requestAnimationFrame(render);
});
announceAnswers(pictures);
listenForPictures(take);
onClick("clear", clear);
onClick("export", exportCsv);
onClick("print", () => printReport(pictures, worklist.sorted()));
onClick("save", () => saveReport(pictures, worklist.sorted()));
onClick("keys", showKeys);
listenForKeys({
  heat: () => reading.toggleHeat(),
  invert: () => reading.toggleInverted(),
  zoomIn: () => zoomIn(reading.viewer),
  zoomOut: () => zoomOut(reading.viewer),
  reset: () => reading.viewer.reset(),
  move,
  open: () => reading.focus(),
  help: showKeys,
});
introduceModel();
render();
