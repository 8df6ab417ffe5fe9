/**
 * The worklist: one row per image, sortable by every column, the most suspicious first.
 *
 * @typedef {import("./images.js").XrayImage} XrayImage
 * @typedef {import("./images.js").ImageList} ImageList
 * @typedef {import("./api.js").Prediction} Prediction
 *
 * @typedef {object} Column
 * @property {string} key unique
 * @property {"name" | "outcome" | "target" | "class"} role
 * @property {string} title
 * @property {"ascending" | "descending"} first order after the first click
 * @property {(prediction: Prediction) => number | null} [probability]
 */

import { byId, h } from "./dom.js";
import { capital, countWords, imageWords, MARKS, outcomeOf, probabilityWords, shownFindings, TONES } from "./words.js";

// A name of more characters is shortened in the middle: its end tells it apart from those of the same folder.
const HEAD = 8;
const TAIL = 30;
const MOST_CLASSES = 3; // columns of classes; more do not fit, and the panel beside the image shows them all

/** @type {Column[]} */
const FIXED = [
  { key: "name", role: "name", title: "Image", first: "ascending" },
  { key: "outcome", role: "outcome", title: "Prediction", first: "ascending" },
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
    this._column = "target";
    this._direction = "descending";
    /** @type {number | null} */
    this._chosen = null;
    /** @type {Map<number, HTMLTableRowElement>} */
    this._rows = new Map();
    /** What each row was filled from. @type {WeakMap<HTMLTableRowElement, unknown[]>} */
    this._filled = new WeakMap();
    this._body = byId("rows");
    this._body.addEventListener("keydown", (event) => this._onKey(event));
    images.addEventListener("bundle", () => this._makeColumns());
    this._makeColumns();
  }

  /** @returns {XrayImage[]} in the order of the list */
  sorted() {
    const sign = this._direction === "ascending" ? 1 : -1;
    return this._images
      .all()
      .map((image) => ({ image, key: this._key(image), tone: this._tone(image) }))
      .sort((one, other) => {
        // What has no value is last in either order.
        if (one.key === null || other.key === null) {
          if (one.key !== other.key) return one.key === null ? 1 : -1;
          return one.tone - other.tone || one.image.id - other.image.id;
        }
        const order =
          typeof one.key === "string" ? byName.compare(one.key, String(other.key)) : one.key - Number(other.key);
        return sign * order || one.image.id - other.image.id;
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
      // Rows in the right place are not touched: moving a row would take its focus.
      if (this._body.children[index] !== row) this._body.insertBefore(row, this._body.children[index] ?? null);
    });
    if (focused instanceof HTMLElement && focused !== document.activeElement && this._body.contains(focused)) {
      focused.focus({ preventScroll: true });
    }
    byId("counts").textContent = this._counts();
  }

  /**
   * @param {number} step
   * @returns {number | null} the image that many rows further
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
  _outcome(image) {
    return outcomeOf(image, this._images.decided(image), this._images.bundle);
  }

  /** @param {XrayImage} image */
  _tone(image) {
    return TONES.indexOf(this._outcome(image).tone);
  }

  /** @param {XrayImage} image */
  _key(image) {
    if (this._column === "name") return image.name;
    if (this._column === "outcome") {
      const tone = this._tone(image);
      return tone === TONES.indexOf("reading") ? null : tone;
    }
    const column = this._columns.find(({ key }) => key === this._column);
    return (image.prediction && column?.probability?.(image.prediction)) ?? null;
  }

  /** Make the columns for the findings of the model; before it is known there are none for findings. */
  _makeColumns() {
    /** @type {Column[]} */
    this._columns = [...FIXED, ...findingColumns(this._images.bundle)];
    // Another model may not have the class that the list was sorted by.
    if (!this._columns.some(({ key }) => key === this._column)) this._column = "target";
    this._heads = this._columns.map((column) => this._head(column));
    byId("heads").replaceChildren(...this._heads);
    this._body.replaceChildren();
    this._rows.clear();
  }

  /** @param {Column} column */
  _head({ key, role, title, first }) {
    const sort = () => {
      const other = this._direction === "ascending" ? "descending" : "ascending";
      this._direction = this._column === key ? other : first;
      this._column = key;
      this.render(this._chosen);
    };
    const arrow = h("span", { class: "arrow", "aria-hidden": "true" });
    const words = h("span", { class: "heading" }, title);
    const button = h("button", { type: "button", title, onclick: sort }, words, arrow);
    return h("th", { scope: "col", "data-column": role, "data-key": key }, button);
  }

  _renderHeads() {
    for (const head of this._heads) {
      if (head.dataset.key === this._column) head.setAttribute("aria-sort", this._direction);
      else head.removeAttribute("aria-sort");
    }
  }

  /** @param {XrayImage} image */
  _newRow(image) {
    const cells = this._columns.map(({ role }) =>
      role === "name" ? h("th", { scope: "row", "data-column": role }) : h("td", { "data-column": role }),
    );
    cells[0].append(
      h("span", { class: "pick" }, h("span", { class: "thumbnail", "aria-hidden": "true" }), nameButton(image.name)),
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
    const chosen = image.id === this._chosen;
    const { prediction, stage, thumbnail: small } = image;
    const state = [chosen, prediction, stage, small, this._images.operatingPoint, this._images.bundle];
    // Of a thousand rows few change at a time, and the browser lays out what is written to.
    if (state.every((value, index) => value === this._filled.get(row)?.[index])) return;
    this._filled.set(row, state);
    const outcome = this._outcome(image);
    row.dataset.tone = outcome.tone;
    row.classList.toggle("chosen", chosen);
    const [name, words, ...numbers] = row.cells;
    const button = /** @type {HTMLButtonElement} */ (name.querySelector("button"));
    button.tabIndex = chosen ? 0 : -1; // one stop for the tab key, arrow keys inside the list
    if (chosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    const thumbnail = /** @type {HTMLElement} */ (name.querySelector(".thumbnail"));
    if (small && thumbnail.firstChild !== small) thumbnail.replaceChildren(small);
    words.replaceChildren(
      h("span", { class: "mark", "aria-hidden": "true" }, MARKS[outcome.tone]),
      h("span", {}, outcome.short),
    );
    this._columns.slice(FIXED.length).forEach(({ probability }, index) => {
      numbers[index].textContent = prediction && probability ? probabilityWords(probability(prediction)) : "";
    });
  }

  _counts() {
    /** @type {Map<import("./words.js").Tone, number>} */
    const counts = new Map();
    for (const image of this._images.all()) {
      const { tone } = this._outcome(image);
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
 * @param {import("./api.js").Bundle | null} bundle
 * @returns {Column[]}
 */
function findingColumns(bundle) {
  if (!bundle) return [];
  const { target, within } = shownFindings(bundle);
  const classes = within.length > MOST_CLASSES ? [] : within;
  return [
    { key: "target", role: "target", title: capital(target), first: "descending", probability: (one) => one.p_target },
    ...classes.map((name) => ({
      key: `class ${name}`,
      role: /** @type {const} */ ("class"),
      title: capital(name),
      first: /** @type {const} */ ("descending"),
      probability: (/** @type {Prediction} */ one) => one.probabilities[name] ?? null,
    })),
  ];
}

/** @param {string} name */
function nameButton(name) {
  const kind = name.includes("/") ? "name folders" : "name";
  return h("button", { type: "button", class: kind, title: name }, ...breakable(shortened(name)));
}

/** @param {string} name */
function shortened(name) {
  const letters = [...name];
  if (letters.length <= HEAD + TAIL) return name;
  return `${letters.slice(0, HEAD).join("")}…${letters.slice(1 - TAIL).join("")}`;
}

/**
 * A file name that may break after its punctuation.
 *
 * @param {string} name
 */
function breakable(name) {
  return name.split(/(?<=[_\-.\s])/).flatMap((part) => [part, h("wbr")]);
}
