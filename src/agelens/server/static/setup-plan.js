// Lines and zones as the plan of `agelens watch` holds them.

const LONGEST_NAME = 200;
const NO_AREA = 1e-6;

/** What is wrong with a name, in words; "" when nothing is. */
export function complaint(name, others) {
  if (name === "") return "Give it a name.";
  if (name.length > LONGEST_NAME) return `A name has ${LONGEST_NAME} characters at most.`;
  if (/[\p{C}\u2028\u2029]/u.test(name)) return "A name has printable characters only.";
  return others.includes(name) ? "Another one has this name." : "";
}

/** What is wrong with the corners of a zone, in words; "" when nothing is. */
export function cornersComplaint(points) {
  if (Math.abs(area(points)) < NO_AREA) return "The zone has no area: move a corner.";
  const sides = points.map((point, row) => [point, points[(row + 1) % points.length]]);
  for (const [row, side] of sides.entries()) {
    for (const [other, against] of sides.entries()) {
      const neighbours = (row + 1) % sides.length === other || (other + 1) % sides.length === row || row === other;
      if (!neighbours && cross(side, against)) return `The sides after corners ${row + 1} and ${other + 1} cross: move a corner.`;
    }
  }
  return "";
}

function area(points) {
  return points.reduce((sum, [x, y], row) => {
    const [nextX, nextY] = points[(row + 1) % points.length];
    return sum + (x * nextY - nextX * y) / 2;
  }, 0);
}

/** Whether two sides have a point in common. */
function cross([a, b], [c, d]) {
  const turns = [turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b)];
  if (turns[0] !== turns[1] && turns[2] !== turns[3]) return true;
  const within = ([px, py], [qx, qy], [x, y]) => Math.min(px, qx) <= x && x <= Math.max(px, qx) && Math.min(py, qy) <= y && y <= Math.max(py, qy);
  return (
    (turns[0] === 0 && within(a, b, c)) ||
    (turns[1] === 0 && within(a, b, d)) ||
    (turns[2] === 0 && within(c, d, a)) ||
    (turns[3] === 0 && within(c, d, b))
  );
}

function turn([px, py], [qx, qy], [x, y]) {
  const found = (qx - px) * (y - py) - (qy - py) * (x - px);
  return Math.abs(found) < 1e-12 ? 0 : Math.sign(found);
}

/** A share of the picture, to a thousandth: finer than any camera is fixed to its wall. */
export function rounded(share) {
  return Math.round(1000 * Math.min(1, Math.max(0, share))) / 1000;
}

/**
 * The tables that go below `[[cameras]]`.
 * @param {{kind: "line"|"zone", name: string, points: number[][], inSide?: string, staff?: boolean}[]} shapes
 */
export function planText(shapes) {
  return shapes.map((shape) => (shape.kind === "line" ? lineTable(shape) : zoneTable(shape))).join("\n");
}

function lineTable({ name, points: [start, end], inSide }) {
  return [
    "[[cameras.lines]]",
    `name = ${text(name)}`,
    `start = ${point(start)}`,
    `end = ${point(end)}`,
    `in_side = ${text(inSide)}`,
    "",
  ].join("\n");
}

function zoneTable({ name, points, staff }) {
  return [
    "[[cameras.zones]]",
    `name = ${text(name)}`,
    `polygon = [${points.map(point).join(", ")}]`,
    ...(staff ? ["staff = true"] : []),
    "",
  ].join("\n");
}

function point([x, y]) {
  return `[${number(x)}, ${number(y)}]`;
}

function number(share) {
  const found = String(rounded(share));
  return found.includes(".") ? found : `${found}.0`;
}

/** A basic string of TOML, whose escapes are those of JSON; DEL has none there. */
function text(value) {
  return JSON.stringify(value).replaceAll("\u007f", "\\u007f");
}
