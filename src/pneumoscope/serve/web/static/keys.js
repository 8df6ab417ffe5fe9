/**
 * Keyboard shortcuts. Single keys can be switched off, for users of speech input.
 *
 * @typedef {object} Commands
 * @property {() => void} heat
 * @property {() => void} invert
 * @property {() => void} zoomIn
 * @property {() => void} zoomOut
 * @property {() => void} reset
 * @property {(step: number) => void} move
 * @property {() => void} open
 * @property {() => void} help
 */

import { byId } from "./dom.js";

/** @param {Commands} commands */
export function listenForKeys(commands) {
  /** @type {Record<string, () => void>} */
  const keys = {
    h: commands.heat,
    i: commands.invert,
    "+": commands.zoomIn,
    "=": commands.zoomIn,
    "-": commands.zoomOut,
    0: commands.reset,
    j: () => commands.move(1),
    k: () => commands.move(-1),
    "?": commands.help,
  };
  document.addEventListener("keydown", (event) => {
    const other = event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented;
    if (other || document.querySelector("dialog[open]") || typing(event.target)) return;
    if (event.target === document.body) {
      // Without a focused element, the arrows and Enter are for the worklist.
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        commands.move(event.key === "ArrowDown" ? 1 : -1);
        event.preventDefault();
        return;
      }
      if (event.key === "Enter") commands.open();
    }
    const command = keys[event.key.toLowerCase()];
    if (!command || !(/** @type {HTMLInputElement} */ (byId("letters")).checked)) return;
    event.preventDefault();
    command();
  });
}

/** @param {EventTarget | null} target */
function typing(target) {
  if (target instanceof HTMLInputElement) return target.type !== "range";
  return target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement;
}
