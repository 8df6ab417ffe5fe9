/**
 * Sends images in small batches, a few batches at a time, and waits while the server is busy.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./images.js").ImageList} ImageList
 */

import { announce } from "./announce.js";
import { Problem } from "./api.js";
import { imageWords } from "./words.js";

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
    /** Identities of the models that predictions came from. @type {Set<string>} */
    this._models = new Set();
  }

  /** @param {XrayImage[]} images */
  send(images) {
    this._waiting.push(...images);
    this._start();
  }

  /** @param {XrayImage[]} images */
  again(images) {
    for (const { id } of images) this._images.update(id, { stage: "reading", prediction: null, note: "" });
    this.send(images);
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
    const before = this._images.bundle?.identity;
    try {
      const { bundle, predictions } = await this._patiently(batch, signal);
      const current = this._images.bundle?.identity;
      if (current !== bundle.identity && current !== before) {
        // The model changed while this was under way: what comes late is of the one before.
        this.again(batch);
        return;
      }
      this._use(bundle);
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
      // Who has cancelled the request for a token is not asked again for each batch.
      const without = error instanceof Problem && error.status === 401 ? this._waiting.splice(0) : [];
      for (const image of [...batch, ...without]) this._images.update(image.id, { stage: "failed", note });
    }
  }

  /**
   * Use the model that a prediction came from; what another one has predicted is predicted again.
   *
   * @param {import("./api.js").Bundle} bundle
   */
  _use(bundle) {
    this._images.setBundle(bundle);
    const { identity } = bundle;
    const others = this._images.all().filter(({ prediction }) => prediction && prediction.bundle !== identity);
    // A model for the second time: with two servers of different models this would go on without end.
    const known = this._models.has(identity);
    this._models.add(identity);
    if (!others.length) return;
    const what = `The server has another model now, ${identity}`;
    for (const image of others) {
      if (known) this._images.update(image.id, { stage: "failed", prediction: null, note: `${what}. Try again.` });
      else this.again([image]);
    }
    const count = imageWords(others.length);
    announce(known ? `${what}: try ${count} again.` : `${what}: predicting ${count} again.`);
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
        return await this._api.predict(files, signal);
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
