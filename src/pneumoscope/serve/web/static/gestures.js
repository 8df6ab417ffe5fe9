/** Mouse, touch and keys on the image. */

const STEP = 1.25;
const PAN_STEP = 40;

/**
 * @param {HTMLElement} frame takes the focus
 * @param {import("./viewer.js").Viewer} viewer
 */
export function listenForGestures(frame, viewer) {
  const { canvas } = viewer;
  /** @type {Map<number, {x: number, y: number}>} */
  const pointers = new Map();

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => viewer.reset());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      viewer.zoomBy(Math.exp((-event.deltaY * lines) / 500), { x: event.offsetX, y: event.offsetY });
    },
    { passive: false },
  );
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => pointers.delete(/** @type {PointerEvent} */ (event).pointerId));
  }
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const moved = { x: now.x - before.x, y: now.y - before.y };
    if (pointers.size === 2) pinch(viewer, pointers, event.pointerId, now);
    else if (event.buttons & 2 || event.altKey) dragWindow(viewer, moved);
    else viewer.panBy(moved.x, moved.y);
    pointers.set(event.pointerId, now);
  });
  frame.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const done = panByKey(viewer, event.key);
    if (done) event.preventDefault();
  });
}

/**
 * As on a workstation: left and right change the width of the window, up and down its level.
 *
 * @param {import("./viewer.js").Viewer} viewer
 * @param {{x: number, y: number}} moved
 */
function dragWindow(viewer, moved) {
  const { level, width } = viewer.window;
  viewer.setWindow({ width: width + moved.x * 0.25, level: level + moved.y * 0.25 });
}

/**
 * @param {import("./viewer.js").Viewer} viewer
 * @param {Map<number, {x: number, y: number}>} pointers
 * @param {number} id of the finger that moved
 * @param {{x: number, y: number}} now
 */
function pinch(viewer, pointers, id, now) {
  const before = /** @type {{x: number, y: number}} */ (pointers.get(id));
  const other = [...pointers].find(([one]) => one !== id);
  if (!other) return;
  const [, still] = other;
  const length = (/** @type {{x: number, y: number}} */ end) => Math.hypot(end.x - still.x, end.y - still.y);
  const corner = viewer.canvas.getBoundingClientRect();
  const middle = { x: (now.x + still.x) / 2 - corner.left, y: (now.y + still.y) / 2 - corner.top };
  viewer.zoomBy(length(now) / Math.max(1, length(before)), middle);
  viewer.panBy((now.x - before.x) / 2, (now.y - before.y) / 2);
}

/**
 * @param {import("./viewer.js").Viewer} viewer
 * @param {string} key
 */
function panByKey(viewer, key) {
  /** @type {Record<string, [number, number]>} */
  const steps = {
    ArrowLeft: [PAN_STEP, 0],
    ArrowRight: [-PAN_STEP, 0],
    ArrowUp: [0, PAN_STEP],
    ArrowDown: [0, -PAN_STEP],
  };
  if (!(key in steps) || viewer.zoom === 1) return false;
  viewer.panBy(...steps[key]);
  return true;
}

/** @param {import("./viewer.js").Viewer} viewer */
export function zoomIn(viewer) {
  viewer.zoomBy(STEP);
}

/** @param {import("./viewer.js").Viewer} viewer */
export function zoomOut(viewer) {
  viewer.zoomBy(1 / STEP);
}
