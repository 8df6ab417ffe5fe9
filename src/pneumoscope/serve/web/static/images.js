/**
 * The images of this page, in memory only: gone when the tab is closed, or by `clear`.
 *
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").Bundle} Bundle
 * @typedef {import("./api.js").OperatingPoint} OperatingPoint
 *
 * @typedef {object} Given
 * @property {File} file
 * @property {string} name with the folders of a dropped folder
 *
 * @typedef {object} XrayImage
 * @property {number} id
 * @property {File} file
 * @property {string} name as given
 * @property {"reading" | "done" | "failed"} stage
 * @property {Prediction | null} prediction
 * @property {string} note why it waits or failed
 * @property {HTMLCanvasElement | null} thumbnail
 * @property {import("./samples.js").Sample | null} sample what is known of an image that the server came with
 */

/** Dispatches "change" with the ids that changed, and "bundle" when the model is known. */
export class ImageList extends EventTarget {
  constructor() {
    super();
    /** @type {Map<number, XrayImage>} */
    this._images = new Map();
    this._next = 1;
    /** @type {Bundle | null} */
    this.bundle = null;
    /** @type {string | null} */
    this._operatingPoint = null;
  }

  get size() {
    return this._images.size;
  }

  /** @returns {XrayImage[]} in the order in which they were added */
  all() {
    return [...this._images.values()];
  }

  /** @param {number | null} id */
  get(id) {
    return (id !== null && this._images.get(id)) || null;
  }

  /**
   * @param {Given[]} given
   * @param {import("./samples.js").Sample[]} [samples] what is known of each, for images that the server came with
   * @returns {XrayImage[]}
   */
  add(given, samples = []) {
    const added = given.map(({ file, name }, index) => {
      /** @type {XrayImage} */
      const image = {
        id: this._next++,
        file,
        name,
        stage: "reading",
        prediction: null,
        note: "",
        thumbnail: null,
        sample: samples[index] ?? null,
      };
      this._images.set(image.id, image);
      return image;
    });
    this._changed(added.map((image) => image.id));
    return added;
  }

  /**
   * Change an image, if it is still in the list.
   *
   * @param {number} id
   * @param {Partial<XrayImage>} changes
   */
  update(id, changes) {
    const image = this._images.get(id);
    if (!image) return;
    Object.assign(image, changes);
    this._changed([id]);
  }

  /** @param {number} id */
  remove(id) {
    if (this._images.delete(id)) this._changed([id]);
  }

  clear() {
    const ids = [...this._images.keys()];
    this._images.clear();
    this._changed(ids);
  }

  /** @param {Bundle} bundle */
  setBundle(bundle) {
    if (this.bundle?.identity === bundle.identity) return;
    this.bundle = bundle;
    this.dispatchEvent(new Event("bundle"));
    this._changed([...this._images.keys()]);
  }

  /**
   * The calibration that applies to a prediction.
   *
   * @param {Prediction | null} prediction
   * @returns {import("./api.js").Population | null} null if the model is not known
   */
  calibrationOf(prediction) {
    const all = this.bundle?.populations ?? [];
    return all.find(({ population }) => population === prediction?.population) ?? all[0] ?? null;
  }

  /**
   * The operating point for a prediction: the chosen one, or the default where its population has none of
   * that name.
   *
   * @param {Prediction | null} prediction
   * @returns {OperatingPoint | null} null if the model is not known
   */
  pointOf(prediction) {
    const points = this.calibrationOf(prediction)?.operating_points ?? [];
    const named = (/** @type {string | null | undefined} */ name) => points.find((point) => point.name === name);
    return named(this._operatingPoint) ?? named(this.bundle?.default_operating_point) ?? null;
  }

  /** Name of the chosen operating point; null for the default. */
  get operatingPoint() {
    return this._operatingPoint;
  }

  /**
   * Decide all images again: the probabilities stay, only the threshold changes.
   *
   * @param {string} name
   */
  setOperatingPoint(name) {
    this._operatingPoint = name;
    this._changed([...this._images.keys()]);
  }

  /**
   * The prediction for an image, with the decision at the chosen operating point.
   *
   * @param {XrayImage} image
   * @returns {Prediction | null}
   */
  decided(image) {
    const { prediction } = image;
    const point = this.pointOf(prediction);
    if (!prediction || prediction.p_target === null || !point || prediction.operating_point === point.name) return prediction;
    const decision = prediction.p_target >= point.threshold ? prediction.target : `no ${prediction.target}`;
    return { ...prediction, decision, operating_point: point.name };
  }

  /** @param {number[]} ids */
  _changed(ids) {
    if (ids.length) this.dispatchEvent(new CustomEvent("change", { detail: ids }));
  }
}
