/**
 * Sends images in small batches, a few batches at a time, and waits while the server is busy.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./images.js").ImageList} ImageList
 */

import { Problem } from "./api.js";

const BATCH = 4;
const PARALLEL = 2;
const BATCH_BYTES = 32 * 1024 * 1024;
const PATIENCE_MS = 300_000; // with a busy server
const LONGEST_WAIT_S = 30;

/** @typedef {{images: XrayImage[], patience: number}} Batch */

export class Uploads {
  /**
   * @param {import("./api.js").Api} api
   * @param {ImageList} images
   */
  constructor(api, images) {
    this._api = api;
    this._images = images;
    /** @type {XrayImage[]} */
    this._waiting = [];
    this._running = 0;
    this._stop = new AbortController();
  }

  /** @param {XrayImage[]} images */
  send(images) {
    this._waiting.push(...images);
    this._start();
  }

  /** @param {XrayImage} image */
  again(image) {
    this._images.update(image.id, { stage: "reading", note: "" });
    this.send([image]);
  }

  /** Drop the images that wait and abort the requests in progress. */
  cancel() {
    this._waiting = [];
    this._stop.abort();
    this._stop = new AbortController();
  }

  _start() {
    while (this._running < PARALLEL && this._waiting.length) {
      this._running += 1;
      const { signal } = this._stop;
      this._deliver(this._nextBatch(), signal).finally(() => {
        this._running -= 1;
        this._start();
      });
    }
  }

  _nextBatch() {
    /** @type {XrayImage[]} */
    const batch = [];
    let bytes = 0;
    while (this._waiting.length && batch.length < BATCH) {
      bytes += this._waiting[0].file.size;
      if (batch.length && bytes > BATCH_BYTES) break;
      const image = /** @type {XrayImage} */ (this._waiting.shift());
      if (this._images.get(image.id)) batch.push(image);
    }
    return batch;
  }

  /**
   * @param {XrayImage[]} batch
   * @param {AbortSignal} signal
   */
  async _deliver(batch, signal) {
    if (!batch.length) return;
    try {
      const { bundle, predictions } = await this._patiently(batch, signal);
      this._images.setBundle(bundle);
      batch.forEach((image, index) => {
        const missing = "The server gave no prediction for this image.";
        // The server gets and returns the file name only; the page has the folders as well.
        const prediction = predictions[index] && { ...predictions[index], path: image.name };
        this._images.update(image.id, prediction ? { stage: "done", prediction, note: "" } : { stage: "failed", note: missing });
      });
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status === 413 && batch.length > 1) {
        // Together they are too large; each one may not be.
        for (const image of batch) await this._deliver([image], signal);
        return;
      }
      const note = explanation(error);
      for (const image of batch) this._images.update(image.id, { stage: "failed", note });
    }
  }

  /**
   * @param {XrayImage[]} batch
   * @param {AbortSignal} signal
   */
  async _patiently(batch, signal) {
    const files = batch.map((image) => image.file);
    const start = Date.now();
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this._api.predict(files, this._images.operatingPoint, signal);
      } catch (error) {
        const busy = error instanceof Problem && (error.status === 429 || error.status === 503);
        if (!busy || signal.aborted || Date.now() - start > PATIENCE_MS) throw error;
        for (const image of batch) this._images.update(image.id, { note: "The server is busy; this image waits." });
        const seconds = error.retryAfter ?? 2 ** attempt;
        // A random share keeps many pages from retrying at the same instant.
        await pause(Math.min(seconds, LONGEST_WAIT_S) * (1 + 0.25 * Math.random()) * 1000, signal);
      }
    }
  }
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve(undefined);
    });
  });
}

/** @param {unknown} error */
function explanation(error) {
  if (error instanceof Problem) {
    if (error.status === 401) return "The server requires an access token. Try again and enter it.";
    return error.message;
  }
  if (error instanceof DOMException && error.name === "TimeoutError") return "The server took too long. Try again.";
  return "The server cannot be reached, or the file can no longer be read. Try again.";
}
