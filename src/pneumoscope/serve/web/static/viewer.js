/**
 * The X-ray on a canvas: zoom, pan, window and level, heat map.
 *
 * @typedef {import("./heatmap.js").HeatLayer} HeatLayer
 * @typedef {import("./windowing.js").Window} Window
 */

import { paintHeat } from "./heatmap.js";
import { applyWindow, FULL } from "./windowing.js";

const NEAREST = 12;
const FARTHEST = 1;

/** Dispatches "view" when zoom, window or heat map change. */
export class Viewer extends EventTarget {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    super();
    this.canvas = canvas;
    /** @type {HTMLCanvasElement | null} */
    this._image = null;
    this._windowed = document.createElement("canvas");
    /** @type {HeatLayer | null} */
    this._heat = null;
    this.heatShown = true;
    this.opacity = 0.6;
    /** @type {Window} */
    this.window = { ...FULL };
    /** Zoom, 1 where the image fits, and the offset of the image from the canvas' centre in CSS pixels. */
    this.zoom = 1;
    this._offset = { x: 0, y: 0 };
    this._frame = 0;
    new ResizeObserver(() => this._resize()).observe(canvas);
  }

  /** @returns {boolean} */
  get hasHeat() {
    return this._heat !== null;
  }

  /**
   * @param {HTMLCanvasElement | null} image
   * @param {HeatLayer | null} heat
   * @param {boolean} sameAsBefore keep zoom and window: a better version of the same image
   */
  show(image, heat, sameAsBefore) {
    this._image = image;
    this._heat = heat;
    if (!sameAsBefore) {
      this.window = { ...FULL };
      this.zoom = 1;
      this._offset = { x: 0, y: 0 };
    }
    this._applyWindow();
  }

  /** @param {Partial<Window>} change */
  setWindow(change) {
    const { level, width, inverted } = { ...this.window, ...change };
    const within = (/** @type {number} */ value, /** @type {number} */ low) => Math.min(100, Math.max(low, value));
    this.window = { level: within(level, 0), width: within(width, 1), inverted };
    this._applyWindow();
  }

  /** @param {{shown?: boolean, opacity?: number}} change */
  setHeat({ shown = this.heatShown, opacity = this.opacity }) {
    this.heatShown = shown;
    this.opacity = opacity;
    this._changed();
  }

  /**
   * @param {number} factor
   * @param {{x: number, y: number}} [at] point that stays in place; CSS pixels from the canvas' corner
   */
  zoomBy(factor, at = this._centre()) {
    const before = this.zoom;
    this.zoom = Math.min(NEAREST, Math.max(FARTHEST, before * factor));
    const ratio = this.zoom / before;
    const centre = this._centre();
    this._offset.x = (at.x - centre.x) * (1 - ratio) + this._offset.x * ratio;
    this._offset.y = (at.y - centre.y) * (1 - ratio) + this._offset.y * ratio;
    this._keepInSight();
    this._changed();
  }

  /**
   * @param {number} x CSS pixels
   * @param {number} y
   */
  panBy(x, y) {
    this._offset.x += x;
    this._offset.y += y;
    this._keepInSight();
    this._changed();
  }

  /** Fit the image and show its full grayscale. */
  reset() {
    this.zoom = 1;
    this._offset = { x: 0, y: 0 };
    this.window = { ...FULL };
    this._applyWindow();
  }

  _centre() {
    return { x: this.canvas.clientWidth / 2, y: this.canvas.clientHeight / 2 };
  }

  /** Position and size of the image in CSS pixels. */
  _box() {
    const image = /** @type {HTMLCanvasElement} */ (this._image);
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min(clientWidth / image.width, clientHeight / image.height) * this.zoom;
    const [width, height] = [image.width * scale, image.height * scale];
    const centre = this._centre();
    return { left: centre.x + this._offset.x - width / 2, top: centre.y + this._offset.y - height / 2, width, height };
  }

  /** Keep a large image over the whole canvas, and a small one in the middle. */
  _keepInSight() {
    if (!this._image) return;
    const box = this._box();
    const slackX = Math.max(0, (box.width - this.canvas.clientWidth) / 2);
    const slackY = Math.max(0, (box.height - this.canvas.clientHeight) / 2);
    this._offset.x = Math.min(slackX, Math.max(-slackX, this._offset.x));
    this._offset.y = Math.min(slackY, Math.max(-slackY, this._offset.y));
  }

  _applyWindow() {
    if (this._image) applyWindow(this._image, this.window, this._windowed);
    else this._windowed.width = this._windowed.height = 0; // keeps no pixels of an image that was removed
    this._changed();
  }

  _resize() {
    const dense = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * dense));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * dense));
    this._keepInSight();
    this._paint(); // at once: a resized canvas is empty and would flicker
  }

  _changed() {
    // One finger pans the page until the image is enlarged; then it pans the image.
    this.canvas.style.touchAction = this.zoom > 1 ? "none" : "pan-y";
    this.dispatchEvent(new Event("view"));
    this._frame ||= requestAnimationFrame(() => this._paint());
  }

  _paint() {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this._image) return;
    const dense = this.canvas.width / Math.max(1, this.canvas.clientWidth);
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.imageSmoothingQuality = "high";
    const box = this._box();
    context.drawImage(this._windowed, box.left, box.top, box.width, box.height);
    if (this._heat && this.heatShown) {
      paintHeat(context, this._heat, box, this.opacity, Math.max(1.25, this.canvas.clientHeight / 800));
    }
  }
}
