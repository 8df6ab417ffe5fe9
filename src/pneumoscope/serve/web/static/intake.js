/**
 * Ways to add images: drop (files and folders), paste, file dialog.
 *
 * @typedef {import("./images.js").Given} Given
 */

import { byId } from "./dom.js";

/** @param {(given: Given[]) => void} take */
export function listenForImages(take) {
  const picker = /** @type {HTMLInputElement} */ (byId("picker"));
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.addEventListener("click", () => picker.click());
  }
  picker.addEventListener("change", () => {
    give([...(picker.files ?? [])].map(chosen), take);
    picker.value = ""; // so that the same file can be chosen again
  });
  listenForDrops(take);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    give(files.map(pasted), take);
  });
}

/** @param {(given: Given[]) => void} take */
function listenForDrops(take) {
  const veil = byId("veil");
  let depth = 0; // enter and leave are dispatched for every element
  const show = () => veil.toggleAttribute("hidden", depth <= 0);
  const carriesFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;

  document.addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth += 1;
    show();
  });
  document.addEventListener("dragover", (event) => {
    if (carriesFiles(event)) event.preventDefault();
  });
  document.addEventListener("dragleave", (event) => {
    if (!carriesFiles(event)) return;
    depth -= 1;
    show();
  });
  document.addEventListener("drop", async (event) => {
    depth = 0;
    show();
    if (!event.dataTransfer || !carriesFiles(event)) return;
    event.preventDefault();
    give(await dropped(event.dataTransfer), take);
  });
}

/**
 * @param {Given[]} given
 * @param {(given: Given[]) => void} take
 */
function give(given, take) {
  // Hidden and system files of a dropped folder are left out.
  const images = given.filter(({ file }) => !/^(\..*|thumbs\.db|desktop\.ini|dicomdir)$/i.test(file.name));
  if (images.length) take(images);
}

/**
 * @param {File} file of the file dialog, or dropped by itself
 * @returns {Given}
 */
function chosen(file) {
  return { file, name: file.webkitRelativePath || file.name };
}

/**
 * The files of a drop; folders are searched with all their subfolders.
 *
 * @param {DataTransfer} transfer
 * @returns {Promise<Given[]>}
 */
async function dropped(transfer) {
  const plain = [...transfer.files].map(chosen);
  // Entries must be read before the first await: the browser empties the list after the event.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const found = await Promise.all(entries.map((entry) => (entry ? filesIn(entry) : [])));
  return found.flat();
}

/**
 * @param {FileSystemEntry} entry
 * @returns {Promise<Given[]>}
 */
async function filesIn(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => {
      /** @type {FileSystemFileEntry} */ (entry).file(resolve, () => resolve(null));
    });
    // A DICOM CD has the same file names for every patient; the folders tell them apart.
    return file ? [{ file, name: entry.fullPath.slice(1) }] : [];
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  /** @type {Given[]} */
  const found = [];
  for (;;) {
    // A folder is read in portions; an empty one is the end.
    const portion = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!portion.length) return found;
    for (const child of portion) found.push(...(await filesIn(child)));
  }
}

/**
 * Pasted images are all called "image.png"; the time makes the names different.
 *
 * @param {File} file
 * @returns {Given}
 */
function pasted(file) {
  if (!/^image\.\w+$/i.test(file.name)) return { file, name: file.name };
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", ".");
  return { file, name: `pasted ${time}.${file.name.split(".").pop()}` };
}
