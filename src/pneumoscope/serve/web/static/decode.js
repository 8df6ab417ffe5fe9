/**
 * Images for the screen. The server's preview is the image as the model read it; until it arrives, the
 * browser shows the file itself if it can.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 */

const LARGEST_FILE = 48 * 1024 * 1024; // larger files are not decoded by the browser
const LARGEST_SIDE = 2048;

/**
 * @param {string} address a data: or blob: address
 * @returns {Promise<HTMLImageElement>}
 */
export async function loadImage(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

/**
 * The preview of the server, or else the file as the browser decodes it.
 *
 * @param {XrayImage} image
 * @returns {Promise<HTMLCanvasElement | null>} null if neither can be shown
 */
export async function imageCanvas(image) {
  try {
    if (image.prediction?.preview) return toCanvas(await loadImage(image.prediction.preview), LARGEST_SIDE);
    return await fileCanvas(image.file, LARGEST_SIDE);
  } catch (error) {
    if (error instanceof DOMException) return null;
    throw error;
  }
}

/**
 * @param {File} file
 * @param {number} side the longest, in pixels
 */
export async function fileCanvas(file, side) {
  if (!/^image\/(jpeg|png|webp|bmp|gif)$/.test(file.type) || file.size > LARGEST_FILE) return null;
  const bitmap = await createImageBitmap(file);
  try {
    return toCanvas(bitmap, side);
  } finally {
    bitmap.close();
  }
}

/**
 * @param {HTMLImageElement | ImageBitmap | HTMLCanvasElement} source
 * @param {number} side the longest, in pixels; smaller images keep their size
 */
export function toCanvas(source, side) {
  const canvas = document.createElement("canvas");
  const [width, height] =
    source instanceof HTMLImageElement ? [source.naturalWidth, source.naturalHeight] : [source.width, source.height];
  const scale = Math.min(1, side / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/**
 * Makes thumbnails one after another, so that many large files do not fill the memory.
 */
export class Thumbnails {
  /** @param {(image: XrayImage, canvas: HTMLCanvasElement) => void} ready */
  constructor(ready) {
    this._ready = ready;
    this._last = Promise.resolve();
  }

  /**
   * @param {XrayImage} image
   * @param {number} side
   */
  make(image, side = 96) {
    this._last = this._last.then(async () => {
      try {
        const preview = image.prediction?.preview;
        const canvas = preview ? toCanvas(await loadImage(preview), side) : await fileCanvas(image.file, side);
        if (canvas) this._ready(image, canvas);
      } catch (error) {
        // A file that the browser cannot decode keeps its placeholder; the server gives the reason.
        if (!(error instanceof DOMException)) throw error;
      }
    });
  }
}
