// Reads an OpenAPI 3.1 description: operations, parameters, fields, examples, command lines.

import { quoted } from "./elements.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const DEEPEST = 6;

/** A description of an interface. */
export class Description {
  #whole;

  constructor(whole) {
    this.#whole = whole;
  }

  /** Every operation, in the order of the description. */
  operations() {
    return Object.entries(this.#whole.paths ?? {}).flatMap(([path, item]) =>
      METHODS.filter((method) => item[method]).map((method) => ({
        method,
        path,
        id: `${method}-${path.replaceAll(/[^A-Za-z0-9]+/g, "-").replaceAll(/^-|-$/g, "")}`,
        ...item[method],
        parameters: [...(item.parameters ?? []), ...(item[method].parameters ?? [])].map((one) => this.found(one)),
        requestBody: this.found(item[method].requestBody),
      })),
    );
  }

  /** What a reference points to; anything else as it is. */
  found(node) {
    let here = node;
    for (let hops = 0; here?.$ref && hops < 10; hops += 1) {
      const [root, ...steps] = here.$ref.split("/");
      here = root === "#" ? steps.reduce((at, step) => at?.[step.replaceAll("~1", "/").replaceAll("~0", "~")], this.#whole) : {};
    }
    return here;
  }

  /** Whether an operation wants a key. */
  isGuarded(operation) {
    const asked = operation.security ?? this.#whole.security ?? [];
    return asked.length > 0 && asked.every((one) => Object.keys(one).length > 0);
  }

  /** The kind of a value in a few words, as "list of text" or "whole number 1..200". */
  kind(node) {
    const schema = this.found(node) ?? {};
    const choices = schema.anyOf ?? schema.oneOf;
    if (choices) return [...new Set(choices.map((one) => this.kind(one)))].join(" or ");
    if (schema.contentEncoding) return `text in ${schema.contentEncoding}`;
    if (schema.allOf?.length === 1) return this.kind(schema.allOf[0]);
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(", ");
    if (schema.type === "array") return this.#listKind(schema);
    const words = { integer: "whole number", string: "text", boolean: "true or false", object: "object", null: "null" };
    if (schema.type === "string" && (schema.format === "binary" || schema.contentMediaType)) return "file";
    return `${words[schema.type] ?? schema.type ?? "any"}${range(schema)}`;
  }

  #listKind(schema) {
    if (schema.prefixItems) return `list of ${schema.prefixItems.length}: ${schema.prefixItems.map((one) => this.kind(one)).join(", ")}`;
    const inner = this.kind(schema.items ?? {});
    return inner === "file" ? "files" : `list of ${inner}`;
  }

  /**
   * The fields of an object, those of nested ones by their whole names ("faces[].age.mean").
   * @returns {{name: string, kind: string, required: boolean, description: string}[]}
   */
  fields(node, before = "", depth = 0) {
    const schema = this.#object(node);
    if (!schema.properties || depth > DEEPEST) return [];
    return Object.entries(schema.properties).flatMap(([name, property]) => {
      const full = `${before}${name}`;
      const [inner, mark] = this.#inside(property);
      const resolved = this.found(property);
      const row = {
        name: full,
        kind: this.kind(property),
        required: (schema.required ?? []).includes(name),
        description: property.description ?? resolved.description ?? "",
      };
      return [row, ...(inner ? this.fields(inner, `${full}${mark}.`, depth + 1) : [])];
    });
  }

  /** The object of a schema; of several that are possible, the fields of all. */
  #object(node) {
    const schema = this.found(node) ?? {};
    const choices = (schema.anyOf ?? schema.oneOf ?? schema.allOf)?.map((one) => this.#object(one)).filter((one) => one.properties);
    if (!choices?.length) return schema;
    const required = choices.map((one) => one.required ?? []);
    return {
      properties: Object.assign({}, ...choices.map((one) => one.properties)),
      required: required[0].filter((name) => required.every((names) => names.includes(name))),
    };
  }

  #inside(node) {
    const schema = this.found(node) ?? {};
    if (schema.type === "array") return [this.#object(schema.items ?? {}), "[]"];
    const list = (schema.anyOf ?? []).map((one) => this.found(one)).find((one) => one?.type === "array");
    if (list) return [this.#object(list.items ?? {}), "[]"];
    const object = this.#object(schema);
    return object.properties ? [object, ""] : [null, ""];
  }

  /** An example of a body: the one that is given, or one made from the schema. */
  example(media) {
    if (media.example !== undefined) return media.example;
    const given = Object.values(media.examples ?? {}).map((one) => this.found(one)?.value);
    return given.length ? given[0] : this.#sample(media.schema ?? {});
  }

  #sample(node, depth = 0) {
    const schema = this.found(node) ?? {};
    for (const name of ["example", "default", "const"]) if (schema[name] !== undefined && schema[name] !== null) return schema[name];
    if (schema.examples?.length) return schema.examples[0];
    if (schema.enum) return schema.enum[0];
    const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
    if (choices) return this.#sample(choices[0], depth + 1);
    if (schema.type === "object" || schema.properties) return this.#sampleObject(schema, depth);
    if (schema.type === "array") return depth > DEEPEST ? [] : [this.#sample(schema.items ?? {}, depth + 1)];
    return { integer: schema.minimum ?? 1, number: schema.minimum ?? 0.5, boolean: true, null: null }[schema.type] ?? "text";
  }

  #sampleObject(schema, depth) {
    if (depth > DEEPEST) return {};
    return Object.fromEntries(
      Object.entries(schema.properties ?? {}).map(([name, property]) => [name, this.#sample(property, depth + 1)]),
    );
  }

  /** A command line that makes the request with a body of a kind, or none. */
  command(operation, type, address, withKey) {
    const lines = ["curl"];
    if (withKey && this.isGuarded(operation)) lines.push(`  -H "Authorization: Bearer $AGELENS_KEY"`);
    if (type === "multipart/form-data") lines.push(...this.#parts(operation.requestBody.content[type]));
    else if (type === "application/json") {
      lines.push("  --json " + quoted(JSON.stringify(this.example(operation.requestBody.content[type]))));
    } else if (type !== null) {
      const exact = type.endsWith("/*") ? `${type.slice(0, -1)}jpeg` : type;
      lines.push(`  -H 'Content-Type: ${exact}'`, "  --data-binary @photo.jpg");
    } else if (operation.method !== "get") lines.push(`  -X ${operation.method.toUpperCase()}`);
    lines.push(`  ${quoted(`${address}${operation.path}`)}`);
    return lines.length === 2 ? `curl ${lines[1].trim()}` : lines.join(" \\\n");
  }

  #parts(media) {
    const schema = this.#object(media.schema ?? {});
    const needed = Object.entries(schema.properties ?? {}).filter(
      ([name, property]) => isFile(this.found(property), this) || (schema.required ?? []).includes(name),
    );
    return needed.map(([name, property]) => {
      const value = isFile(this.found(property), this) ? "@photo.jpg" : String(this.#sample(property));
      return `  -F ${quoted(`${name}=${value}`)}`;
    });
  }
}

function isFile(schema, description) {
  return ["file", "files"].includes(description.kind(schema));
}

function range(schema) {
  const least = schema.minimum ?? schema.exclusiveMinimum;
  const most = schema.maximum ?? schema.exclusiveMaximum;
  if (least !== undefined && most !== undefined) return ` ${least}..${most}`;
  if (least !== undefined) return `, ${least} or more`;
  return most === undefined ? "" : `, ${most} or less`;
}
