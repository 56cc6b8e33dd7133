// Builds what a page shows. Text becomes text nodes only: no text is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** The element of this page with an id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}`);
  return found;
}

/**
 * An HTML element.
 * @param {string} tag
 * @param {Object} attributes Values as text; true sets an empty one; null and false leave it out;
 *     "on" is an object of listeners.
 * @param {...(Node|string|number|null)} children
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element; as `element`. */
export function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Show or hide an element. */
export function show(node, shown = true) {
  node.hidden = !shown;
}

/** Say something to those who listen to the page. */
export function announce(text) {
  const place = byId("announcer");
  // The same sentence twice in a row is only read again when the text has changed in between.
  place.textContent = "";
  requestAnimationFrame(() => {
    place.textContent = text;
  });
}

/** A button that copies a text, and says so. */
export function copyButton(what, text) {
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copied(text());
    button.textContent = done ? "Copied" : "Select and copy by hand";
    announce(done ? `Copied ${what}` : "The browser did not allow copying");
    setTimeout(() => {
      button.textContent = "Copy";
    }, 2500);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https there is no clipboard object; the old command still works there.
    const area = element("textarea", { class: "unseen", "aria-hidden": "true", tabindex: -1 });
    area.value = text;
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

/** A share as people read it: "95 %", never 0 % or 100 %, which no estimate is worth. */
export function percent(share) {
  if (share < 0.005) return "under 1\u00a0%";
  if (share > 0.995) return "over 99\u00a0%";
  return `${Math.round(100 * share)}\u00a0%`;
}

/** One word of a number and its noun. */
export function counted(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** Words in single quotes as a POSIX shell takes them literally. */
export function quoted(text) {
  return `'${String(text).replaceAll("'", `'\\''`)}'`;
}
