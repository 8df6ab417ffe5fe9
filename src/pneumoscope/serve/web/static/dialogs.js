/** The small dialogs: access token, clearing, keys. */

import { byId } from "./dom.js";

/**
 * Ask for the access token; it is not stored.
 *
 * @param {boolean} again whether one was entered and rejected
 * @returns {Promise<string | null>} null if it was cancelled
 */
export function askForToken(again) {
  const field = /** @type {HTMLInputElement} */ (byId("token"));
  byId("token-rejected").toggleAttribute("hidden", !again);
  // The focus goes to the field: a screen reader reads its description, not the text above it.
  if (again) field.setAttribute("aria-describedby", "token-rejected");
  else field.removeAttribute("aria-describedby");
  field.value = "";
  return open("token-dialog").then((button) => {
    const token = field.value.trim();
    field.value = "";
    return button === "yes" && token ? token : null;
  });
}

/** @returns {Promise<boolean>} */
export async function confirmClearing() {
  return (await open("clear-dialog")) === "yes";
}

export function showKeys() {
  open("keys-dialog");
}

/**
 * @param {string} id
 * @returns {Promise<string>} the value of the button that closed it; empty for Escape
 */
function open(id) {
  const dialog = /** @type {HTMLDialogElement} */ (byId(id));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
