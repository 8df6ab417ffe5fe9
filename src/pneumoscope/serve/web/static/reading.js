/**
 * The reading area: the image on show with its controls.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 */

import { byId } from "./dom.js";
import { imageCanvas } from "./decode.js";
import { listenForGestures, zoomIn, zoomOut } from "./gestures.js";
import { heatLayer, paintLegend } from "./heatmap.js";
import { Viewer } from "./viewer.js";
import { likelihoodWords, outcomeOf } from "./words.js";

export class Reading {
  constructor() {
    this._frame = byId("frame");
    this.viewer = new Viewer(/** @type {HTMLCanvasElement} */ (byId("canvas")));
    /** Id of the image on show. @type {number | undefined} */
    this._image = undefined;
    /** What it is shown with. @type {import("./api.js").Prediction | null | undefined} */
    this._prediction = undefined;
    this._count = 0;
    this._loading = false;
    listenForGestures(this._frame, this.viewer);
    paintLegend(/** @type {HTMLCanvasElement} */ (byId("scale")));
    this._connect();
    this.viewer.addEventListener("view", () => this._controls());
    this._controls();
  }

  /**
   * @param {XrayImage | null} image
   * @param {import("./api.js").Prediction | null} prediction
   * @param {import("./api.js").Bundle | null} bundle
   */
  async show(image, prediction, bundle) {
    this._describe(image, prediction, bundle);
    const same = image?.id === this._image;
    // A new prediction may take the place of another without a frame in between, as in a tab in the background.
    const changed = !same || image?.prediction !== this._prediction;
    if (changed) this._loading = image !== null;
    this._markBusy(image);
    if (!changed) return;
    this._image = image?.id;
    this._prediction = image?.prediction;
    this._count += 1;
    const count = this._count;
    if (!same) this.viewer.show(null, null, false);
    if (!image) return;
    const [canvas, heat] = await Promise.all([imageCanvas(image), heatLayer(image.prediction?.heatmap)]);
    if (count !== this._count) return; // another image was chosen meanwhile
    byId("nothing").toggleAttribute("hidden", canvas !== null);
    this.viewer.show(canvas, canvas && heat, same);
    // On a narrow screen the frame has the aspect of the image.
    if (canvas) this._frame.style.setProperty("--aspect", String(canvas.width / canvas.height));
    this._loading = false;
    this._markBusy(image);
  }

  /** @param {XrayImage | null} image */
  _markBusy(image) {
    this._frame.setAttribute("aria-busy", String(this._loading || image?.stage === "reading"));
  }

  toggleHeat() {
    if (this.viewer.hasHeat) this.viewer.setHeat({ shown: !this.viewer.heatShown });
  }

  toggleInverted() {
    this.viewer.setWindow({ inverted: !this.viewer.window.inverted });
  }

  focus() {
    this._frame.focus();
    this._frame.scrollIntoView({ block: "nearest" });
  }

  /**
   * @param {XrayImage | null} image
   * @param {import("./api.js").Prediction | null} prediction
   * @param {import("./api.js").Bundle | null} bundle
   */
  _describe(image, prediction, bundle) {
    if (!image) {
      byId("canvas").setAttribute("aria-label", "X-ray");
      return;
    }
    const outcome = outcomeOf(image, prediction, bundle);
    const likelihood = prediction ? likelihoodWords(prediction) : "";
    byId("canvas").setAttribute("aria-label", `X-ray ${image.name}. ${outcome.title}.${likelihood}`);
    byId("busy").toggleAttribute("hidden", image.stage !== "reading");
    const nothing = image.stage === "reading" ? "" : "There is no image to show.";
    byId("nothing").textContent = nothing;
  }

  _connect() {
    const { viewer } = this;
    const input = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (byId(id));
    byId("heat").addEventListener("click", () => this.toggleHeat());
    byId("invert").addEventListener("click", () => this.toggleInverted());
    byId("zoom-in").addEventListener("click", () => zoomIn(viewer));
    byId("zoom-out").addEventListener("click", () => zoomOut(viewer));
    byId("reset").addEventListener("click", () => viewer.reset());
    input("opacity").addEventListener("input", () => {
      viewer.setHeat({ shown: true, opacity: Number(input("opacity").value) / 100 });
    });
    input("level").addEventListener("input", () => viewer.setWindow({ level: Number(input("level").value) }));
    input("width").addEventListener("input", () => viewer.setWindow({ width: Number(input("width").value) }));
  }

  /** Set the controls to the state of the view. */
  _controls() {
    const { viewer } = this;
    const on = viewer.hasHeat && viewer.heatShown;
    const set = (/** @type {string} */ id, /** @type {number} */ value, /** @type {string} */ shown) => {
      /** @type {HTMLInputElement} */ (byId(id)).value = String(Math.round(value));
      byId(`${id}-value`).textContent = shown;
    };
    set("opacity", viewer.opacity * 100, `${Math.round(viewer.opacity * 100)}%`);
    set("level", viewer.window.level, `${Math.round(viewer.window.level)}%`);
    set("width", viewer.window.width, `${Math.round(viewer.window.width)}%`);
    byId("heat").setAttribute("aria-pressed", String(on));
    byId("invert").setAttribute("aria-pressed", String(viewer.window.inverted));
    byId("zoom-value").textContent = viewer.zoom === 1 ? "fit" : `${viewer.zoom.toFixed(1)}×`;
    byId("legend").classList.toggle("off", !on); // keeps its space, so that the image does not move
    for (const id of ["heat", "opacity"]) {
      /** @type {HTMLButtonElement | HTMLInputElement} */ (byId(id)).disabled = !viewer.hasHeat;
    }
  }
}
