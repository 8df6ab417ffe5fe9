/**
 * Window and level: which grey levels of the image are spread over those of the screen.
 *
 * @typedef {object} Window
 * @property {number} level centre, in percent of the grayscale
 * @property {number} width in percent of the grayscale
 * @property {boolean} inverted
 */

/** @type {Readonly<Window>} the full grayscale */
export const FULL = Object.freeze({ level: 50, width: 100, inverted: false });

/**
 * Apply a window to an image.
 *
 * @param {HTMLCanvasElement} image not changed
 * @param {Window} window
 * @param {HTMLCanvasElement} target gets the image's size
 */
export function applyWindow(image, window, target) {
  const { width, height } = image;
  target.width = width;
  target.height = height;
  const from = /** @type {CanvasRenderingContext2D} */ (image.getContext("2d", { willReadFrequently: true }));
  const to = /** @type {CanvasRenderingContext2D} */ (target.getContext("2d"));
  const pixels = from.getImageData(0, 0, width, height);
  const table = lookup(window);
  const { data } = pixels;
  for (let at = 0; at < data.length; at += 4) {
    data[at] = table[data[at]];
    data[at + 1] = table[data[at + 1]];
    data[at + 2] = table[data[at + 2]];
  }
  to.putImageData(pixels, 0, 0);
}

/** @param {Window} window */
function lookup({ level, width, inverted }) {
  const low = ((level - width / 2) / 100) * 255;
  const span = Math.max(1, (width / 100) * 255);
  const table = new Uint8ClampedArray(256);
  for (let grey = 0; grey < 256; grey += 1) {
    const shown = ((grey - low) / span) * 255;
    table[grey] = inverted ? 255 - Math.min(255, Math.max(0, shown)) : shown;
  }
  return table;
}
