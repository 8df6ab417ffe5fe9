/**
 * The REST interface, as this page uses it.
 *
 * @typedef {object} Estimate
 * @property {number | null} value
 * @property {number | null} low ends of the 95% interval
 * @property {number | null} high
 *
 * @typedef {object} OperatingPoint
 * @property {string} name
 * @property {number} threshold in [0, 1]; at or above it the decision is for the target
 * @property {Estimate | null} sensitivity
 * @property {Estimate | null} specificity
 *
 * @typedef {object} Population
 * @property {string} population its name
 * @property {OperatingPoint[]} operating_points
 * @property {boolean} prediction_sets whether its predictions have prediction sets
 *
 * @typedef {object} Target
 * @property {string} name the finding that the model decides on
 * @property {string[]} classes those that count as it
 *
 * @typedef {object} Bundle
 * @property {string} identity
 * @property {string} name
 * @property {string[]} classes in the order of the model
 * @property {Target} target
 * @property {string} default_operating_point every population has it
 * @property {Population[]} populations the first is the default
 *
 * @typedef {object} Facts
 * @property {string} format
 * @property {number} width
 * @property {number} height
 * @property {string | null} view
 * @property {string | null} modality
 * @property {string | null} age_band
 * @property {number | null} bits
 *
 * @typedef {object} Heatmap
 * @property {string} finding
 * @property {[number, number, number, number]} region top, left, bottom, right, as fractions
 * @property {string} png data URL of a grey image: 0 no evidence, 255 the strongest
 *
 * @typedef {object} Prediction
 * @property {string} path
 * @property {"ok" | "rejected" | "unreadable"} status
 * @property {string[]} reasons
 * @property {Record<string, number>} probabilities by class; empty unless the status is "ok"
 * @property {string} target
 * @property {number | null} p_target
 * @property {string | null} finding
 * @property {string | null} decision the target, or "no" and the target
 * @property {string | null} operating_point
 * @property {string | null} population
 * @property {string[]} prediction_set
 * @property {string} bundle
 * @property {string} message
 * @property {boolean} uncertain
 * @property {Facts | null} facts
 * @property {string} sha256
 * @property {Heatmap | null} heatmap
 * @property {string | null} preview data URL
 */

const TIMEOUT_MS = 180_000;
// Tokens of the server; typographic quotes and invisible characters of a careless copy cannot even be sent.
const TOKEN = /^[\x21-\x7e]+$/;

/** An error that the server returned (RFC 9457). */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {string} detail
   * @param {number | null} retryAfter seconds
   */
  constructor(status, detail, retryAfter = null) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Sends requests, with a bearer token where the server requires one; the token is kept in this object only. */
export class Api {
  /** @param {(again: boolean) => Promise<string | null>} askForToken resolves to null if it was cancelled */
  constructor(askForToken) {
    this._askForToken = askForToken;
    /** @type {string | null} */
    this._token = null;
    /** @type {Promise<string | null> | null} */
    this._asking = null;
  }

  /** @returns {Promise<Bundle>} */
  async bundle() {
    const { facts } = await (await this.request("v1/bundle")).json();
    return facts;
  }

  /**
   * Predict at the default operating point; the page decides at the chosen one.
   *
   * @param {File[]} files
   * @param {AbortSignal} signal
   * @returns {Promise<{bundle: Bundle, predictions: Prediction[]}>}
   */
  async predict(files, signal) {
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name);
    const query = new URLSearchParams({ heatmap: "inline", preview: "inline" });
    const within = AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]);
    const response = await this.request(`v1/predictions?${query}`, { method: "POST", body: form, signal: within });
    return response.json();
  }

  /**
   * @param {string} address
   * @param {RequestInit} [options]
   * @returns {Promise<Response>} a success
   * @throws {Problem} if the server rejects
   * @throws {TypeError} if it cannot be reached
   */
  async request(address, options = {}) {
    for (;;) {
      const token = this._token;
      const headers = new Headers(options.headers);
      if (token) headers.set("Authorization", `Bearer ${token}`);
      const response = await fetch(address, { ...options, headers, cache: "no-store" });
      if (response.ok) return response;
      if (response.status !== 401) throw await problem(response);
      // Another request may have set a token in the meantime.
      if (this._token === token && !(await this._ask(token !== null))) throw await problem(response);
    }
  }

  /**
   * Ask once, however many requests need a token.
   *
   * @param {boolean} again
   */
  async _ask(again) {
    this._asking ??= this._tokenToSend(again).finally(() => {
      this._asking = null;
    });
    this._token = await this._asking;
    return this._token !== null;
  }

  /** @param {boolean} again */
  async _tokenToSend(again) {
    let token = await this._askForToken(again);
    while (token !== null && !TOKEN.test(token)) token = await this._askForToken(true);
    return token;
  }
}

/** @param {Response} response */
async function problem(response) {
  let details = null;
  try {
    details = await response.json();
  } catch {
    // A proxy may send an HTML page.
  }
  const detail = details?.detail || details?.title || `The server returned status ${response.status}.`;
  return new Problem(response.status, String(detail), seconds(response.headers.get("Retry-After")));
}

/** @param {string | null} value seconds or a date */
function seconds(value) {
  if (!value) return null;
  const number = Number(value);
  if (Number.isFinite(number)) return Math.max(0, number);
  const date = Date.parse(value);
  return Number.isNaN(date) ? null : Math.max(0, (date - Date.now()) / 1000);
}
