/**
 * The images of this page, in memory alone: gone with the tab, or by `clear`.
 *
 * @typedef {import("./api.js").Prediction} Prediction
 * @typedef {import("./api.js").Bundle} Bundle
 *
 * @typedef {object} XrayImage
 * @property {number} id
 * @property {File} file
 * @property {string} name
 * @property {"reading" | "done" | "failed"} stage
 * @property {Prediction | null} prediction
 * @property {string} note why it waits or has failed
 * @property {HTMLCanvasElement | null} thumbnail
 */

/** Says "change" with the ids that changed, "bundle" when the model is known. */
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

  /** @returns {XrayImage[]} in the order they came */
  all() {
    return [...this._images.values()];
  }

  /** @param {number | null} id */
  get(id) {
    return (id !== null && this._images.get(id)) || null;
  }

  /**
   * @param {File[]} files
   * @returns {XrayImage[]}
   */
  add(files) {
    const added = files.map((file) => {
      /** @type {XrayImage} */
      const image = { id: this._next++, file, name: file.name, stage: "reading", prediction: null, note: "", thumbnail: null };
      this._images.set(image.id, image);
      return image;
    });
    this._changed(added.map((image) => image.id));
    return added;
  }

  /**
   * Change a image that is still there.
   *
   * @param {number} id
   * @param {Partial<XrayImage>} news
   */
  update(id, news) {
    const image = this._images.get(id);
    if (!image) return;
    Object.assign(image, news);
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

  /** The operating point in force, if the model is known. */
  get operatingPoint() {
    const points = this.bundle?.operating_points ?? [];
    const named = (/** @type {string | null | undefined} */ name) => points.find((point) => point.name === name);
    return named(this._operatingPoint) ?? named(this.bundle?.default_operating_point) ?? null;
  }

  /**
   * Decide all images anew: the probabilities stay, only the threshold moves.
   *
   * @param {string} name
   */
  setOperatingPoint(name) {
    this._operatingPoint = name;
    this._changed([...this._images.keys()]);
  }

  /**
   * A image's prediction with the decision of the operating point in force.
   *
   * @param {XrayImage} image
   * @returns {Prediction | null}
   */
  decided(image) {
    const { prediction } = image;
    const point = this.operatingPoint;
    if (!prediction || prediction.p_pneumonia === null || !point || prediction.operating_point === point.name) return prediction;
    const decision = prediction.p_pneumonia >= point.threshold ? "pneumonia" : "no pneumonia";
    return { ...prediction, decision, operating_point: point.name };
  }

  /** @param {number[]} ids */
  _changed(ids) {
    if (ids.length) this.dispatchEvent(new CustomEvent("change", { detail: ids }));
  }
}
