// The page of the interface: each operation of openapi.json, in words, tables and command lines.

import { byId, copyButton, element, show } from "./elements.js";
import { key } from "./key.js";
import { Description } from "./openapi.js";
import { Problem, ROOT, ask, showProblem } from "./service.js";

const PROBLEM = "application/problem+json";
const ADDRESS = `${location.origin}${ROOT}`;

// --- words -------------------------------------------------------------------------------------------

/** Paragraphs and lists of a description; words in backticks are code, everything else is text. */
function paragraphs(text) {
  return text
    .trim()
    .split(/\n\s*\n/)
    .filter(Boolean)
    .map((block) => {
      const lines = block.split("\n").map((line) => line.trim());
      if (lines.every((line) => line.startsWith("- "))) {
        return element("ul", {}, ...lines.map((line) => element("li", {}, ...phrase(line.slice(2)))));
      }
      return element("p", {}, ...phrase(lines.join(" ")));
    });
}

function phrase(text) {
  return text.split(/`+/).map((part, row) => (row % 2 ? element("code", {}, part) : part));
}

function copyable(text, label) {
  const pre = element("pre", { tabindex: 0, "aria-label": label }, text);
  return element("div", { class: "copyable" }, pre, copyButton(label.toLowerCase(), () => text));
}

const json = (value) => JSON.stringify(value, null, 2);

// --- one operation -------------------------------------------------------------------------------------

function method(name) {
  return element("span", { class: `method ${name}` }, name.toUpperCase());
}

function operationSection(description, operation) {
  const title = `${operation.id}-title`;
  return element(
    "section",
    { id: operation.id, class: "operation", "aria-labelledby": title },
    element("h3", { id: title }, method(operation.method), element("span", { class: "path" }, operation.path)),
    operation.summary ? element("p", {}, element("b", {}, operation.summary)) : null,
    ...paragraphs(operation.description ?? ""),
    description.isGuarded(operation) ? element("p", { class: "quiet" }, "Wants a key, where the server has keys.") : null,
    ...parameters(description, operation),
    ...body(description, operation),
    ...responses(description, operation),
  );
}

function parameters(description, operation) {
  if (operation.parameters.length === 0) return [];
  const rows = operation.parameters.map((one) =>
    fieldRow({
      name: one.name,
      kind: `${description.kind(one.schema).replace(/ or null$/, "")}${defaultOf(description.found(one.schema))}`,
      required: one.required ?? false,
      description: one.description ?? description.found(one.schema)?.description ?? "",
      place: one.in,
    }),
  );
  return [element("h4", {}, "Parameters"), table(["name", "kind", "meaning"], rows)];
}

function defaultOf(schema) {
  const value = schema?.default;
  return value === undefined || value === null ? "" : `, else ${typeof value === "string" ? value : json(value)}`;
}

function fieldRow({ name, kind, required, description, place = "query" }) {
  return element(
    "tr",
    {},
    element(
      "td",
      {},
      element("code", {}, ...broken(name)),
      required ? element("span", { class: "required" }, " required") : null,
      place === "query" ? null : element("small", {}, `in the ${place}`),
    ),
    element("td", {}, kind),
    element("td", {}, ...phrase(description)),
  );
}

/** A long name, with the places where it may go on in the next line. */
function broken(name) {
  return name.split(/(?<=\.)/).flatMap((part, row) => (row ? [element("wbr"), part] : [part]));
}

function table(head, rows) {
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table of ${head[0]} and ${head.at(-1)}` },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows),
    ),
  );
}

function body(description, operation) {
  const content = Object.entries(operation.requestBody?.content ?? {});
  if (content.length === 0) {
    return [element("h4", {}, "Request"), copyable(description.command(operation, null, ADDRESS, key() !== null), "Command")];
  }
  const alike = Map.groupBy(content, ([, media]) => JSON.stringify(media));
  return [
    element("h4", {}, alike.size > 1 ? "Request, one of" : "Request"),
    ...[...alike.values()].map((group, row) => bodyOfOneKind(description, operation, group, row === 0)),
  ];
}

/** How to send a body; several content types that are sent alike go together. */
function bodyOfOneKind(description, operation, group, open) {
  const types = group.map(([type]) => type);
  const [type, media] = group[0];
  const fields = description.fields(media.schema ?? {}).map((field) => fieldRow(field));
  const names = types.flatMap((name, row) => [row ? " " : "", element("code", {}, name)]);
  return element(
    "details",
    { open },
    element("summary", {}, ...names),
    copyable(description.command(operation, type, ADDRESS, key() !== null), `Command with ${type}`),
    fields.length ? table(["field", "kind", "meaning"], fields) : null,
    type.endsWith("json") ? copyable(json(description.example(media)), `Example of ${type}`) : null,
  );
}

function responses(description, operation) {
  const all = Object.entries(operation.responses ?? {}).map(([status, one]) => [status, description.found(one)]);
  const problems = all.filter(([, answer]) => PROBLEM in (answer.content ?? {}));
  const others = all.filter((one) => !problems.includes(one));
  return [
    element("h4", {}, "Answers"),
    ...others.map(([status, answer]) => answerOf(description, status, answer)),
    problems.length === 0
      ? null
      : element(
          "details",
          {},
          element("summary", {}, "Problems: ", ...problems.flatMap(([status]) => [element("span", { class: "status" }, status), " "])),
          element("dl", { class: "facts" }, ...problems.flatMap(([status, answer]) => [element("dt", { class: "status" }, status), element("dd", {}, ...phrase(answer.description ?? ""))])),
        ),
  ];
}

function answerOf(description, status, answer) {
  const [type, media] = Object.entries(answer.content ?? {})[0] ?? [null, null];
  const heading = [element("span", { class: "status" }, status), " ", ...phrase(answer.description ?? "")];
  if (media === null) return element("p", {}, ...heading);
  const fields = description.fields(media.schema ?? {}).map((field) => fieldRow(field));
  return element(
    "details",
    {},
    element("summary", {}, ...heading, " ", element("code", {}, type)),
    type.endsWith("json") ? copyable(json(description.example(media)), `Example of answer ${status}`) : null,
    fields.length ? table(["field", "kind", "meaning"], fields) : null,
  );
}

// --- the page --------------------------------------------------------------------------------------------

async function load() {
  let whole;
  try {
    whole = await ask("/openapi.json");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(byId("problem"), error, load);
    return;
  } finally {
    show(byId("loading"), false);
  }
  showProblem(byId("problem"), null);
  const description = new Description(whole);
  const operations = description.operations();
  byId("operations").replaceChildren(...operations.map((one) => operationSection(description, one)));
  byId("contents-endpoints").replaceChildren(
    ...operations.map((one) => element("li", {}, element("a", { href: `#${one.id}` }, method(one.method), " ", one.path))),
  );
  // The place was named before it was there.
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

// A server that only shows visitors takes no pictures.
if (document.getElementById("start") !== null) {
  byId("first-command").textContent = [
    "curl",
    "  -H 'Content-Type: image/jpeg'",
    "  --data-binary @photo.jpg",
    `  '${ADDRESS}/v1/analyze'`,
  ].join(" \\\n");
  for (const [id, what] of [["first-command", "the command"], ["stream-example", "the messages"]]) {
    byId(id).after(copyButton(what, () => byId(id).textContent));
  }
}
if (matchMedia("(max-width: 56rem)").matches) byId("contents").open = false;
load();
