/** Entry point: connects the parts of the page. */

import { announce, announceResults } from "./announce.js";
import { Api } from "./api.js";
import { toCsv } from "./csv.js";
import { Thumbnails } from "./decode.js";
import { askForToken, confirmClearing, showKeys } from "./dialogs.js";
import { byId, download, stamp } from "./dom.js";
import { zoomIn, zoomOut } from "./gestures.js";
import { listenForImages } from "./intake.js";
import { listenForKeys } from "./keys.js";
import { ImageList } from "./images.js";
import { Reading } from "./reading.js";
import { printReport, saveReport } from "./report.js";
import { Result } from "./result.js";
import { fetchSamples } from "./samples.js";
import { Uploads } from "./uploads.js";
import { imageWords, shownFindings } from "./words.js";
import { Worklist } from "./worklist.js";

/** @typedef {import("./images.js").XrayImage} XrayImage */

const LONGEST_PAUSE_MS = 1000;

const api = new Api(askForToken);
const images = new ImageList();
const uploads = new Uploads(api, images);
const reading = new Reading();
const result = new Result(images, { retry: (some) => uploads.again(some), remove });
const worklist = new Worklist(images, choose);
const thumbnails = new Thumbnails((image, thumbnail) => images.update(image.id, { thumbnail }));
const narrow = window.matchMedia("(max-width: 63.99rem)");

/** @type {number | null} */
let chosen = null;
/** Until the user chooses an image, the page shows the most suspicious one. */
let chosenByHand = false;
let frame = 0;
let timer = 0;
let drawn = 0; // when

/**
 * @param {import("./images.js").Given[]} given
 * @param {import("./samples.js").Sample[]} [samples]
 */
function take(given, samples = []) {
  const added = images.add(given, samples);
  announce(`Reading ${imageWords(added.length)}.`);
  if (images.size === added.length) chosenByHand = false;
  if (!chosenByHand) chosen = added[0].id;
  for (const image of added) thumbnails.make(image);
  uploads.send(added);
}

/**
 * @param {number} id
 * @param {boolean} open go to the image as well
 */
function choose(id, open) {
  chosen = id;
  chosenByHand = true;
  render();
  if (narrow.matches) {
    // The result stands above the image there, and the worklist below both.
    byId("result").focus({ preventScroll: true });
    byId("result").scrollIntoView({ block: "start" });
  } else if (open) {
    reading.focus();
  }
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

/** Render after a change: a long list, which takes long, less often, so that the page can be used while images are read. */
function renderSoon() {
  if (timer || frame) return;
  const pause = drawn + Math.min(images.size, LONGEST_PAUSE_MS) - performance.now();
  timer = window.setTimeout(() => {
    timer = 0;
    frame = requestAnimationFrame(render);
  }, pause);
}

function render() {
  clearTimeout(timer);
  cancelAnimationFrame(frame);
  timer = frame = 0;
  drawn = performance.now();
  const all = images.all();
  const done = all.filter((one) => one.stage !== "reading").length;
  if (!images.get(chosen) || (!chosenByHand && done === all.length)) chosen = worklist.sorted()[0]?.id ?? null;
  const image = images.get(chosen);
  document.body.dataset.images = ["none", "one", "many"][Math.min(2, all.length)];
  for (const id of ["export", "print", "save", "clear"]) byId(id).toggleAttribute("hidden", !all.length);
  const predicted = all.filter((one) => one.prediction !== null);
  for (const id of ["export", "print", "save"]) {
    /** @type {HTMLButtonElement} */ (byId(id)).disabled = !predicted.length;
  }
  const progress = /** @type {HTMLProgressElement} */ (byId("progress"));
  progress.max = Math.max(1, all.length);
  progress.value = done;
  progress.hidden = done === all.length;
  worklist.render(chosen);
  result.show(image);
  reading.show(image, image && images.decided(image), images.bundle);
}

/** @param {XrayImage} image */
function remove(image) {
  const next = worklist.neighbour(1);
  chosen = next === image.id ? worklist.neighbour(-1) : next;
  images.remove(image.id);
  announce(`Removed ${image.name}.`);
}

async function clear() {
  if (images.size > 1 && !(await confirmClearing())) return;
  uploads.cancel();
  images.clear();
  byId("report").replaceChildren();
  announce("Cleared. All images were removed from this page.");
}

function exportCsv() {
  if (!images.bundle) return;
  const rows = worklist.sorted().map((image) => images.decided(image));
  const predictions = /** @type {import("./api.js").Prediction[]} */ (rows.filter((row) => row !== null));
  download(`pneumoscope-${stamp()}.csv`, new Blob([toCsv(predictions, images.bundle)], { type: "text/csv" }));
  const left = rows.length - predictions.length;
  announce(`Saved ${imageWords(predictions.length)}${left ? `; ${left} without a prediction left out` : ""}.`);
}

async function takeSamples() {
  const button = /** @type {HTMLButtonElement} */ (byId("samples"));
  button.disabled = true; // a second click must not add them twice
  try {
    const { given, samples } = await fetchSamples(api);
    take(given, samples);
  } catch (error) {
    byId("samples-note").textContent = `The samples could not be loaded: ${error instanceof Error ? error.message : error}`;
    announce(byId("samples-note").textContent ?? "");
  } finally {
    button.disabled = false;
  }
}

/** Load the facts of the model; a server with access control asks for its token at this first call. */
async function loadModel() {
  images.addEventListener("bundle", () => {
    const { bundle } = images;
    if (!bundle) return;
    const { target, within } = shownFindings(bundle);
    byId("model").textContent = ` ${bundle.identity}`;
    byId("findings").textContent = within.length ? `${target} (${within.join(", ")})` : target;
  });
  try {
    images.setBundle(await api.bundle());
  } catch (error) {
    // Not fatal: the first prediction brings the facts too, and reports a server that cannot be reached.
    announce(error instanceof Error ? `The model could not be loaded: ${error.message}` : "");
  }
}

/**
 * Run a command; its button is marked busy meanwhile.
 *
 * @param {string} id
 * @param {() => Promise<void> | void} command
 */
function onClick(id, command) {
  const button = /** @type {HTMLButtonElement} */ (byId(id));
  button.addEventListener("click", async () => {
    if (button.hasAttribute("aria-busy")) return; // a second click must not print twice
    button.setAttribute("aria-busy", "true");
    try {
      await command();
    } finally {
      button.removeAttribute("aria-busy");
    }
  });
}

images.addEventListener("change", (event) => {
  for (const id of /** @type {CustomEvent<number[]>} */ (event).detail) {
    const image = images.get(id);
    if (image?.prediction?.preview && !image.thumbnail) thumbnails.make(image);
  }
  renderSoon();
});
announceResults(images);
listenForImages((given) => take(given));
onClick("clear", clear);
onClick("export", exportCsv);
onClick("print", () => printReport(images, worklist.sorted()));
onClick("save", () => saveReport(images, worklist.sorted()));
onClick("samples", takeSamples);
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
loadModel();
render();
