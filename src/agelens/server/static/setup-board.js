// The drawing board: lines and zones over a picture, by mouse, touch and keyboard.

import { announce, drawing } from "./elements.js";
import { rounded } from "./setup-plan.js";

const STEP = 0.005;
const LONG_STEP = 0.05;
const NEAR_PX = 16;
const LEAST_CORNERS = 3;

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const HINTS = {
  line: "Set the two ends of the line: click or tap, or move the cross with the arrow keys and press Enter. Escape cancels.",
  zone: "Set the corners of the zone: click or tap, or move the cross with the arrow keys and press Enter. Close it at its first corner, or with the button. Backspace takes back the last corner; Escape cancels.",
  move: "Points can be dragged, or moved with the arrow keys (with Shift in longer steps); Delete removes a corner of a zone.",
};

/** Shapes over a picture; tells of every change. */
export class Board {
  #svg;
  #shapes = [];
  #drawn = null;
  #cross = [0.5, 0.5];
  #chosen = null;
  #dragged = null;
  #onChange;

  /**
   * @param {SVGSVGElement} svg Lies over the picture.
   * @param {function()} onChange Called when shapes, or what is being drawn, have changed.
   */
  constructor(svg, onChange) {
    this.#svg = svg;
    this.#onChange = onChange;
    svg.addEventListener("pointerdown", (event) => this.#press(event));
    svg.addEventListener("pointermove", (event) => this.#move(event));
    svg.addEventListener("pointerup", () => this.#release());
    svg.addEventListener("pointercancel", () => this.#release());
    svg.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  /** All shapes, in the order in which they were drawn. */
  get shapes() {
    return this.#shapes;
  }

  /** "line" or "zone" while one is being drawn, else null. */
  get drawing() {
    return this.#drawn?.kind ?? null;
  }

  /** Whether what is being drawn can be ended. */
  get canFinish() {
    return this.#drawn?.kind === "zone" && this.#drawn.points.length >= LEAST_CORNERS;
  }

  /** What to do now, in words. */
  get hint() {
    if (this.#drawn) return HINTS[this.#drawn.kind];
    return this.#shapes.length ? HINTS.move : "";
  }

  /** Begin a line or a zone. */
  begin(kind) {
    this.#drawn = { kind, points: [] };
    this.#cross = [0.5, 0.5];
    this.#svg.focus();
    this.#changed();
  }

  cancel() {
    this.#drawn = null;
    this.#changed();
  }

  /** End the zone that is being drawn. */
  finish() {
    if (this.canFinish) this.#keep();
  }

  remove(shape) {
    this.#shapes = this.#shapes.filter((one) => one !== shape);
    this.#changed();
  }

  /** Point a shape out, or none. */
  choose(shape) {
    this.#chosen = shape;
    this.draw();
  }

  #keep() {
    const { kind, points } = this.#drawn;
    const name = this.#freshName(kind);
    const more = kind === "line" ? { inSide: "left" } : { staff: false };
    this.#shapes.push({ kind, name, points, ...more });
    this.#drawn = null;
    announce(`The ${kind} ${name} is drawn.`);
    this.#changed();
  }

  #freshName(kind) {
    const taken = this.#shapes.map((shape) => shape.name);
    for (let number = 1; ; number += 1) if (!taken.includes(`${kind} ${number}`)) return `${kind} ${number}`;
  }

  #changed() {
    this.draw();
    this.#onChange();
  }

  // --- what is done to it -------------------------------------------------------------------------------

  #at(event) {
    const { left, top, width, height } = this.#svg.getBoundingClientRect();
    return [rounded((event.clientX - left) / width), rounded((event.clientY - top) / height)];
  }

  #pixels([x, y]) {
    const { width, height } = this.#svg.getBoundingClientRect();
    return [x * width, y * height];
  }

  #press(event) {
    if (event.button !== 0) return;
    if (this.#drawn) {
      event.preventDefault();
      this.#svg.focus();
      this.#set(this.#at(event));
      return;
    }
    const handle = event.target.closest("[data-shape]");
    if (handle === null) return;
    event.preventDefault();
    handle.focus();
    this.#dragged = this.#pointOf(handle);
    this.#svg.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (this.#drawn) {
      this.#cross = this.#at(event);
      this.draw();
    } else if (this.#dragged) {
      const { shape, row } = this.#dragged;
      shape.points[row] = this.#at(event);
      this.#changed();
    }
  }

  #release() {
    if (this.#dragged) this.#say(this.#dragged);
    this.#dragged = null;
  }

  #set(point) {
    const { kind, points } = this.#drawn;
    this.#cross = point;
    if (kind === "zone" && points.length >= LEAST_CORNERS && this.#isNear(point, points[0])) {
      this.#keep();
      return;
    }
    if (points.some((one) => this.#isNear(one, point, 2))) return;
    points.push(point);
    if (kind === "line" && points.length === 2) {
      this.#keep();
      return;
    }
    announce(`Point ${points.length} at ${place(point)}.`);
    this.#changed();
  }

  #isNear(one, other, px = NEAR_PX) {
    const [ax, ay] = this.#pixels(one);
    const [bx, by] = this.#pixels(other);
    return Math.hypot(ax - bx, ay - by) < px;
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const used = this.#drawn ? this.#keyWhileDrawing(event) : this.#keyOnPoint(event);
    if (used) event.preventDefault();
  }

  #keyWhileDrawing(event) {
    const { points } = this.#drawn;
    if (event.key in KEYS) {
      this.#cross = stepped(this.#cross, event);
      announce(place(this.#cross));
      this.draw();
    } else if (event.key === "Enter" || event.key === " ") this.#set(this.#cross);
    else if (event.key === "Backspace") {
      points.pop();
      this.#changed();
    } else if (event.key === "Escape") this.cancel();
    else return false;
    return true;
  }

  #keyOnPoint(event) {
    const handle = event.target.closest("[data-shape]");
    if (handle === null) return false;
    const found = this.#pointOf(handle);
    const { shape, row } = found;
    if (event.key in KEYS) {
      shape.points[row] = stepped(shape.points[row], event);
      this.#changed();
      this.#say(found);
    } else if (event.key === "Delete" && shape.kind === "zone" && shape.points.length > LEAST_CORNERS) {
      shape.points.splice(row, 1);
      this.#changed();
    } else return false;
    this.#handleOf(shape, Math.min(row, shape.points.length - 1))?.focus();
    return true;
  }

  #say({ shape, row }) {
    announce(`${shape.name}, ${pointName(shape, row)}: ${place(shape.points[row])}`);
  }

  #pointOf(handle) {
    return { shape: this.#shapes[Number(handle.dataset.shape)], row: Number(handle.dataset.point) };
  }

  #handleOf(shape, row) {
    const number = this.#shapes.indexOf(shape);
    return this.#svg.querySelector(`[data-shape="${number}"][data-point="${row}"]`);
  }

  // --- what is seen -------------------------------------------------------------------------------------

  /** Draw everything anew; what had the focus keeps it. */
  draw() {
    const { width, height } = this.#svg.getBoundingClientRect();
    if (width === 0) return;
    const held = document.activeElement?.closest?.("#board [data-shape]");
    const point = held ? [held.dataset.shape, held.dataset.point] : null;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#svg.classList.toggle("drawing", this.#drawn !== null);
    this.#svg.replaceChildren(
      ...this.#shapes.map((shape, number) => this.#shapeGroup(shape, number)),
      ...(this.#drawn ? this.#unfinished() : []),
    );
    if (point) this.#svg.querySelector(`[data-shape="${point[0]}"][data-point="${point[1]}"]`)?.focus();
  }

  #shapeGroup(shape, number) {
    const corners = shape.points.map((one) => this.#pixels(one));
    const chosen = shape === this.#chosen ? " chosen" : "";
    const outline = corners.map((one) => one.join(",")).join(" ");
    const body =
      shape.kind === "line"
        ? [drawing("polyline", { class: "halo", points: outline }), drawing("polyline", { points: outline }), this.#arrow(shape, corners)]
        : [drawing("polygon", { class: "halo", points: outline }), drawing("polygon", { points: outline })];
    return drawing(
      "g",
      { class: `${shape.kind}${chosen}` },
      ...body,
      this.#label(shape, corners),
      ...this.#drawn ? [] : shape.points.map((one, row) => this.#handle(shape, number, one, row)),
    );
  }

  /** An arrow over the middle of a line, to the side that is "in". */
  #arrow(shape, [[ax, ay], [bx, by]]) {
    const length = Math.hypot(bx - ax, by - ay) || 1;
    const side = shape.inSide === "left" ? 1 : -1;
    const [nx, ny] = [(side * (by - ay)) / length, (side * (ax - bx)) / length];
    const [mx, my] = [(ax + bx) / 2, (ay + by) / 2];
    const at = (along, across) => `${mx + along * nx - across * ny},${my + along * ny + across * nx}`;
    const path = `M${at(-14, 0)} L${at(20, 0)} M${at(12, -7)} L${at(20, 0)} L${at(12, 7)}`;
    return drawing("g", { class: "arrow" }, drawing("path", { class: "halo", d: path }), drawing("path", { d: path }));
  }

  #label(shape, corners) {
    const { width, height } = this.#svg.getBoundingClientRect();
    const [x, y] = shape.kind === "line" ? corners[0] : middle(corners);
    const right = x > 0.6 * width;
    const anchor = shape.kind === "zone" ? "middle" : right ? "end" : "start";
    const dx = shape.kind === "zone" ? 0 : right ? -14 : 14;
    const dy = y < 24 ? 22 : y > height - 12 ? -12 : -10;
    return drawing("text", { class: "name", x: x + dx, y: y + dy, "text-anchor": anchor }, shortened(shape.name));
  }

  #handle(shape, number, point, row) {
    const [x, y] = this.#pixels(point);
    return drawing(
      "g",
      {
        class: "handle",
        tabindex: 0,
        role: "button",
        "aria-label": `${shape.name}, ${pointName(shape, row)}, ${place(point)}`,
        "data-shape": number,
        "data-point": row,
      },
      // What a finger hits is wider than what is seen.
      drawing("circle", { class: "reach", cx: x, cy: y, r: 20 }),
      drawing("circle", { class: "dot", cx: x, cy: y, r: 7 }),
    );
  }

  #unfinished() {
    const { kind, points } = this.#drawn;
    const corners = [...points, this.#cross].map((one) => this.#pixels(one));
    const outline = corners.map((one) => one.join(",")).join(" ");
    const [x, y] = this.#pixels(this.#cross);
    const cross = `M${x - 14},${y} h28 M${x},${y - 14} v28`;
    return [
      drawing(
        "g",
        { class: `${kind} unfinished` },
        drawing("polyline", { class: "halo", points: outline }),
        drawing("polyline", { points: outline }),
        ...points.map((one, row) => {
          const [cx, cy] = this.#pixels(one);
          return drawing("circle", { class: "dot", cx, cy, r: row === 0 && this.canFinish ? 10 : 6 });
        }),
        drawing("path", { class: "halo", d: cross }),
        drawing("path", { class: "cross", d: cross }),
      ),
    ];
  }
}

function stepped([x, y], event) {
  const by = event.shiftKey ? LONG_STEP : STEP;
  const [dx, dy] = KEYS[event.key];
  return [rounded(x + by * dx), rounded(y + by * dy)];
}

function pointName(shape, row) {
  return shape.kind === "line" ? ["start", "end"][row] : `corner ${row + 1}`;
}

function place([x, y]) {
  return `${Math.round(100 * x)} % from the left, ${Math.round(100 * y)} % from the top`;
}

function middle(corners) {
  return [0, 1].map((axis) => corners.reduce((sum, one) => sum + one[axis], 0) / corners.length);
}

function shortened(name) {
  return name.length > 24 ? `${name.slice(0, 23)}…` : name;
}
