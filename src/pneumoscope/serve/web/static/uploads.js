/**
 * Sends pictures in small batches, a few at a time, and waits where the server says it is busy.
 *
 * @typedef {import("./pictures.js").Picture} Picture
 * @typedef {import("./pictures.js").Pictures} Pictures
 */

import { Problem } from "./api.js";

const BATCH = 4;
const PARALLEL = 2;
const BATCH_BYTES = 32 * 1024 * 1024;
const PATIENCE_MS = 300_000; // with a busy server
const LONGEST_WAIT_S = 30;

/** @typedef {{pictures: Picture[], patience: number}} Batch */

export class Uploads {
  /**
   * @param {import("./api.js").Api} api
   * @param {Pictures} pictures
   */
  constructor(api, pictures) {
    this._api = api;
    this._pictures = pictures;
    /** @type {Picture[]} */
    this._waiting = [];
    this._running = 0;
    this._stop = new AbortController();
  }

  /** @param {Picture[]} pictures */
  send(pictures) {
    this._waiting.push(...pictures);
    this._start();
  }

  /** @param {Picture} picture */
  again(picture) {
    this._pictures.update(picture.id, { stage: "reading", note: "" });
    this.send([picture]);
  }

  /** Forget what waits and break off what is under way. */
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
    /** @type {Picture[]} */
    const batch = [];
    let bytes = 0;
    while (this._waiting.length && batch.length < BATCH) {
      bytes += this._waiting[0].file.size;
      if (batch.length && bytes > BATCH_BYTES) break;
      const picture = /** @type {Picture} */ (this._waiting.shift());
      if (this._pictures.get(picture.id)) batch.push(picture);
    }
    return batch;
  }

  /**
   * @param {Picture[]} batch
   * @param {AbortSignal} signal
   */
  async _deliver(batch, signal) {
    if (!batch.length) return;
    try {
      const { bundle, predictions } = await this._patiently(batch, signal);
      this._pictures.setBundle(bundle);
      batch.forEach((picture, index) => {
        const answer = predictions[index];
        const missing = "The server gave no answer for this picture.";
        this._pictures.update(picture.id, answer ? { stage: "answered", answer, note: "" } : { stage: "failed", note: missing });
      });
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status === 413 && batch.length > 1) {
        // Too much together is not too much alone.
        for (const picture of batch) await this._deliver([picture], signal);
        return;
      }
      const note = explanation(error);
      for (const picture of batch) this._pictures.update(picture.id, { stage: "failed", note });
    }
  }

  /**
   * @param {Picture[]} batch
   * @param {AbortSignal} signal
   */
  async _patiently(batch, signal) {
    const files = batch.map((picture) => picture.file);
    const start = Date.now();
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this._api.predict(files, this._pictures.operatingPoint?.name ?? null, signal);
      } catch (error) {
        const busy = error instanceof Problem && (error.status === 429 || error.status === 503);
        if (!busy || signal.aborted || Date.now() - start > PATIENCE_MS) throw error;
        for (const picture of batch) this._pictures.update(picture.id, { note: "The server is busy; this picture waits." });
        const asked = error.retryAfter ?? 2 ** attempt;
        // A little spread keeps many pages from coming back at the same instant.
        await pause(Math.min(asked, LONGEST_WAIT_S) * (1 + 0.25 * Math.random()) * 1000, signal);
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
    if (error.status === 401) return "The server wants an access token. Try again and give it.";
    return error.message;
  }
  if (error instanceof DOMException && error.name === "TimeoutError") return "The server took too long. Try again.";
  return "The server cannot be reached, or the file can no longer be read. Try again.";
}
