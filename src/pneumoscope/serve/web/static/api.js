/**
 * The REST interface, as this page uses it.
 *
 * @typedef {object} OperatingPoint
 * @property {string} name
 * @property {number} threshold in [0, 1]; at or above it the decision is "pneumonia"
 * @property {number | null} sensitivity
 * @property {number | null} specificity
 *
 * @typedef {object} Bundle
 * @property {string} identity
 * @property {string} name
 * @property {string[]} findings
 * @property {OperatingPoint[]} operating_points
 * @property {string} default_operating_point
 * @property {number[] | null} [conformal] thresholds behind the prediction sets; null where there are none
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
 * @property {string} png address of a grey image: 0 no evidence, 255 the strongest
 *
 * @typedef {object} Prediction
 * @property {string} path
 * @property {"ok" | "rejected" | "unreadable"} status
 * @property {string[]} reasons
 * @property {number | null} p_normal
 * @property {number | null} p_bacterial
 * @property {number | null} p_viral
 * @property {number | null} p_pneumonia
 * @property {string | null} finding
 * @property {"pneumonia" | "no pneumonia" | null} decision
 * @property {string | null} operating_point
 * @property {string[]} prediction_set
 * @property {string} bundle
 * @property {string} message
 * @property {boolean} uncertain
 * @property {Facts | null} facts
 * @property {string} sha256
 * @property {Heatmap | null} heatmap
 * @property {string | null} preview
 */

const TIMEOUT_MS = 180_000;

/** An prediction of the server that is no success (RFC 9457). */
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

/** Requests with a bearer token where the server asks for one; the token lives in this object alone. */
export class Api {
  /** @param {(again: boolean) => Promise<string | null>} askForToken resolves to null if the person gives up */
  constructor(askForToken) {
    this._askForToken = askForToken;
    /** @type {string | null} */
    this._token = null;
    /** @type {Promise<string | null> | null} */
    this._asking = null;
  }

  /** @returns {Promise<Bundle>} */
  async bundle() {
    const { identity, manifest } = await (await this.request("v1/bundle")).json();
    const { name, findings, operating_points, default_operating_point, conformal } = manifest;
    return { identity, name, findings, operating_points, default_operating_point, conformal };
  }

  /**
   * @param {File[]} files
   * @param {string | null} operatingPoint
   * @param {AbortSignal} signal
   * @returns {Promise<{bundle: Bundle, predictions: Prediction[]}>}
   */
  async predict(files, operatingPoint, signal) {
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name);
    const query = new URLSearchParams({ heatmap: "inline", preview: "inline" });
    if (operatingPoint) query.set("operating_point", operatingPoint);
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
      // Another request may have brought a token while this one was under way.
      if (this._token === token && !(await this._ask(token !== null))) throw await problem(response);
    }
  }

  /**
   * Ask once, however many requests wait.
   *
   * @param {boolean} again
   */
  async _ask(again) {
    this._asking ??= this._askForToken(again).finally(() => {
      this._asking = null;
    });
    this._token = await this._asking;
    return this._token !== null;
  }
}

/** @param {Response} response */
async function problem(response) {
  let outcome = null;
  try {
    outcome = await response.json();
  } catch {
    // A proxy between us may prediction with a page of its own.
  }
  const detail = outcome?.detail || outcome?.title || `The server answered ${response.status}.`;
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
