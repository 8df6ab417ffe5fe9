/** The small dialogs: access token, clearing, keys. */

import { byId } from "./dom.js";

/**
 * Ask for the access token; it is kept nowhere but in what is returned.
 *
 * @param {boolean} again whether one was given and rejected
 * @returns {Promise<string | null>} null if the person gives up
 */
export function askForToken(again) {
  const field = /** @type {HTMLInputElement} */ (byId("token"));
  byId("token-rejected").toggleAttribute("hidden", !again);
  field.value = "";
  return ask("token-dialog").then((prediction) => {
    const token = field.value.trim();
    field.value = "";
    return prediction === "yes" && token ? token : null;
  });
}

/** @returns {Promise<boolean>} */
export async function confirmClearing() {
  return (await ask("clear-dialog")) === "yes";
}

export function showKeys() {
  ask("keys-dialog");
}

/**
 * @param {string} id
 * @returns {Promise<string>} the value of the button that closed it; empty for Escape
 */
function ask(id) {
  const dialog = /** @type {HTMLDialogElement} */ (byId(id));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
