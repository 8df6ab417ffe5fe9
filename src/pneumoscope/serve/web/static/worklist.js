/**
 * The worklist: one line a image, sortable by every column, the most suspicious first.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./images.js").ImageList} ImageList
 * @typedef {"name" | "outcome" | "p_pneumonia" | "p_bacterial" | "p_viral"} Column
 */

import { byId, h } from "./dom.js";
import { countWords, MARKS, percent, imageWords, TONES, outcomeOf } from "./words.js";

/** @type {[Column, string, "ascending" | "descending"][]} column, heading, and the order of the first click */
const COLUMNS = [
  ["name", "Image", "ascending"],
  ["outcome", "Answer", "ascending"],
  ["p_pneumonia", "Pneumonia", "descending"],
  ["p_bacterial", "Bacterial", "descending"],
  ["p_viral", "Viral", "descending"],
];

const byName = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

export class Worklist {
  /**
   * @param {ImageList} images
   * @param {(id: number, open: boolean) => void} choose
   */
  constructor(images, choose) {
    this._images = images;
    this._choose = choose;
    /** @type {Column} */
    this._column = "p_pneumonia";
    this._direction = "descending";
    /** @type {number | null} */
    this._chosen = null;
    /** @type {Map<number, HTMLTableRowElement>} */
    this._rows = new Map();
    this._body = byId("rows");
    this._heads = COLUMNS.map((column) => this._head(column));
    byId("heads").append(...this._heads);
    this._body.addEventListener("keydown", (event) => this._onKey(event));
  }

  /** @returns {XrayImage[]} as they stand in the list */
  sorted() {
    const turn = this._direction === "ascending" ? 1 : -1;
    return this._images
      .all()
      .map((image) => ({ image, key: this._key(image) }))
      .sort((one, other) => {
        // What has no value stands last, whichever way the list is turned.
        if (one.key === null || other.key === null) {
          if (one.key !== other.key) return one.key === null ? 1 : -1;
          return this._tone(one.image) - this._tone(other.image) || one.image.id - other.image.id;
        }
        const order =
          typeof one.key === "string" ? byName.compare(one.key, String(other.key)) : one.key - Number(other.key);
        return turn * order || one.image.id - other.image.id;
      })
      .map(({ image }) => image);
  }

  /**
   * @param {number | null} chosen
   */
  render(chosen) {
    this._chosen = chosen;
    this._renderHeads();
    const focused = document.activeElement;
    const sorted = this.sorted();
    for (const [id, row] of this._rows) {
      if (!this._images.get(id)) {
        row.remove();
        this._rows.delete(id);
      }
    }
    sorted.forEach((image, index) => {
      const row = this._rows.get(image.id) ?? this._newRow(image);
      this._fill(row, image);
      // Rows that stand right are not touched: moving one would take its focus.
      if (this._body.children[index] !== row) this._body.insertBefore(row, this._body.children[index] ?? null);
    });
    if (focused instanceof HTMLElement && focused !== document.activeElement && this._body.contains(focused)) {
      focused.focus({ preventScroll: true });
    }
    byId("counts").textContent = this._counts();
  }

  /**
   * @param {number} step
   * @returns {number | null} the image that many lines on
   */
  neighbour(step) {
    const sorted = this.sorted();
    if (!sorted.length) return null;
    const at = sorted.findIndex((image) => image.id === this._chosen);
    return sorted[Math.min(sorted.length - 1, Math.max(0, at + step))].id;
  }

  /** @param {number} id */
  focus(id) {
    this._rows.get(id)?.querySelector("button")?.focus();
  }

  /** @param {number} id */
  reveal(id) {
    this._rows.get(id)?.scrollIntoView({ block: "nearest" });
  }

  /** @returns {boolean} */
  get hasFocus() {
    return this._body.contains(document.activeElement);
  }

  /** @param {XrayImage} image */
  _tone(image) {
    return TONES.indexOf(outcomeOf(image, this._images.decided(image)).tone);
  }

  /** @param {XrayImage} image */
  _key(image) {
    if (this._column === "name") return image.name;
    if (this._column === "outcome") {
      const tone = this._tone(image);
      return tone === TONES.indexOf("reading") ? null : tone;
    }
    return image.prediction?.[this._column] ?? null;
  }

  /** @param {[Column, string, "ascending" | "descending"]} column */
  _head([name, title, first]) {
    const sort = () => {
      const other = this._direction === "ascending" ? "descending" : "ascending";
      this._direction = this._column === name ? other : first;
      this._column = name;
      this.render(this._chosen);
    };
    const arrow = h("span", { class: "arrow", "aria-hidden": "true" });
    return h("th", { scope: "col", "data-column": name }, h("button", { type: "button", onclick: sort }, title, arrow));
  }

  _renderHeads() {
    for (const head of this._heads) {
      const sorted = head.dataset.column === this._column;
      if (sorted) head.setAttribute("aria-sort", this._direction);
      else head.removeAttribute("aria-sort");
    }
    const twoClasses = this._images.bundle !== null && !this._images.bundle.findings.includes("bacterial");
    byId("worklist").toggleAttribute("data-two-classes", twoClasses);
  }

  /** @param {XrayImage} image */
  _newRow(image) {
    const cells = COLUMNS.map(([name]) =>
      name === "name" ? h("th", { scope: "row", "data-column": name }) : h("td", { "data-column": name }),
    );
    cells[0].append(
      h(
        "span",
        { class: "pick" },
        h("span", { class: "thumbnail", "aria-hidden": "true" }),
        h("button", { type: "button", class: "name", title: image.name }, ...breakable(image.name)),
      ),
    );
    const row = /** @type {HTMLTableRowElement} */ (h("tr", {}, ...cells));
    row.addEventListener("click", (event) => this._choose(image.id, event.detail === 0 || event.detail > 1));
    this._rows.set(image.id, row);
    return row;
  }

  /**
   * @param {HTMLTableRowElement} row
   * @param {XrayImage} image
   */
  _fill(row, image) {
    const prediction = this._images.decided(image);
    const outcome = outcomeOf(image, prediction);
    const chosen = image.id === this._chosen;
    row.dataset.tone = outcome.tone;
    row.classList.toggle("chosen", chosen);
    const [name, words, ...numbers] = row.cells;
    const button = /** @type {HTMLButtonElement} */ (name.querySelector("button"));
    button.tabIndex = chosen ? 0 : -1; // one stop for the tab key, arrows within
    if (chosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    const thumbnail = /** @type {HTMLElement} */ (name.querySelector(".thumbnail"));
    if (image.thumbnail && thumbnail.firstChild !== image.thumbnail) thumbnail.replaceChildren(image.thumbnail);
    words.replaceChildren(
      h("span", { class: "mark", "aria-hidden": "true" }, MARKS[outcome.tone]),
      h("span", {}, outcome.short),
    );
    const values = [prediction?.p_pneumonia, prediction?.p_bacterial, prediction?.p_viral];
    numbers.forEach((cell, index) => {
      cell.textContent = prediction ? percent(values[index]) : "";
    });
  }

  _counts() {
    /** @type {Map<import("./words.js").Tone, number>} */
    const counts = new Map();
    for (const image of this._images.all()) {
      const { tone } = outcomeOf(image, this._images.decided(image));
      counts.set(tone, (counts.get(tone) ?? 0) + 1);
    }
    return `${imageWords(this._images.size)}: ${countWords(counts)}`;
  }

  /** @param {KeyboardEvent} event */
  _onKey(event) {
    const all = this.sorted();
    /** @type {Record<string, number | null | undefined>} */
    const targets = {
      ArrowDown: this.neighbour(1),
      ArrowUp: this.neighbour(-1),
      Home: all[0]?.id,
      End: all.at(-1)?.id,
    };
    const target = targets[event.key];
    if (target === null || target === undefined) return;
    event.preventDefault();
    this._choose(target, false);
    this.focus(target);
  }
}

/**
 * A file name that may break after its punctuation.
 *
 * @param {string} name
 */
function breakable(name) {
  return name.split(/(?<=[_\-.\s])/).flatMap((part) => [part, h("wbr")]);
}
