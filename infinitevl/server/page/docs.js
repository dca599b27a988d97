// Lists the calls of the server from its own description, openapi.json.

import { byId, make } from "./dom.js";

const OTHERS = "models and answers"; // the calls without a tag
const FAILED = "422"; // the same for all calls, and answered as 400 with a reason

/** What a schema allows, in words, with links to the objects that it names. */
function kind(schema = {}) {
  if (schema.$ref) return [link(schema.$ref)];
  const choices = (schema.anyOf ?? schema.oneOf)?.filter((one) => one.type !== "null");
  if (choices) return choices.flatMap((one, index) => [...(index ? [" or "] : []), ...kind(one)]);
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return ["list of ", ...kind(schema.items)];
  if (schema.format === "binary") return ["file"];
  return [{ string: "text", integer: "whole number", boolean: "true or false" }[schema.type] ?? schema.type ?? "anything"];
}

function link(reference) {
  const name = reference.split("/").at(-1);
  return make("a", { href: `#object-${name}` }, name);
}

/** The smallest and the largest of what is allowed. */
function bounds(schema = {}) {
  const one = schema.anyOf?.find((choice) => choice.type !== "null") ?? schema;
  const words = [];
  if (one.minimum !== undefined) words.push(`at least ${one.minimum}`);
  if (one.exclusiveMinimum !== undefined) words.push(`more than ${one.exclusiveMinimum}`);
  if (one.maximum !== undefined) words.push(`at most ${one.maximum}`);
  if (one.maxLength !== undefined) words.push(`at most ${one.maxLength.toLocaleString("en-US")} letters`);
  if (schema.default !== undefined && schema.default !== null) words.push(`else ${JSON.stringify(schema.default)}`);
  return words.join(", ");
}

function field(name, schema, required, place = "") {
  const title = make("td", {}, make("code", {}, name), ...(required ? [make("b", { className: "needed" }, "needed")] : []));
  const notes = [place, bounds(schema), schema?.description].filter(Boolean).join("; ");
  return make("tr", {}, title, make("td", {}, ...kind(schema)), make("td", { className: "soft" }, notes));
}

function table(title, rows) {
  if (!rows.length) return [];
  return [make("h4", {}, title), make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": title }, make("table", {}, make("tbody", {}, ...rows)))];
}

function fieldsOf(schema) {
  return Object.entries(schema?.properties ?? {}).map(([name, one]) => field(name, one, schema.required?.includes(name)));
}

function bodyOf(call, schemas) {
  return Object.entries(call.requestBody?.content ?? {}).flatMap(([type, { schema }]) => {
    const whole = schema?.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema;
    const rows = fieldsOf(whole);
    return rows.length ? table(`Body, ${type}`, rows) : [make("p", { className: "soft" }, "Body: ", make("code", {}, type))];
  });
}

function answersOf(call) {
  const answers = Object.entries(call.responses).filter(([status]) => status !== FAILED);
  const words = ([status, { description, content }]) => {
    const types = Object.keys(content ?? {}).join(", ");
    return make("li", {}, make("code", {}, status), ` ${[types, status === "200" ? "" : description].filter(Boolean).join("; ")}`);
  };
  return [make("h4", {}, "Answer"), make("ul", {}, ...answers.map(words))];
}

/** A call as a shell command, with the fields that are needed. */
function curl(method, path, call, schemas) {
  const words = [`curl ${new URL(path.replace(/\{(\w+)\}/g, "$${$1}"), document.baseURI)}`.replaceAll("%7B", "{").replaceAll("%7D", "}")];
  const [type, content] = Object.entries(call.requestBody?.content ?? {})[0] ?? [];
  if (method !== "get" && !(method === "post" && type)) words.push(`-X ${method.toUpperCase()}`);
  if (type === "application/json") {
    const schema = schemas[content.schema.$ref?.split("/").at(-1)] ?? content.schema;
    const needed = Object.fromEntries((schema.required ?? []).map((name) => [name, sample(schema.properties[name], name)]));
    words.push(`-H "content-type: ${type}"`, `-d '${JSON.stringify(needed)}'`);
  } else if (type) {
    words.push(`-H "content-type: ${type}"`, `--data-binary @${type.startsWith("image/") ? "picture.jpg" : "state.safetensors"}`);
  }
  return words.join(" \\\n  ");
}

function sample(schema, name) {
  if (name === "messages") return [{ role: "user", content: "..." }];
  if (schema.type === "number" || schema.type === "integer") return Math.max(5, schema.minimum ?? 5);
  return "...";
}

const idOf = (method, path) => `${method}-${path.replace(/\W+/g, "-")}`;
const badge = (method) => make("b", { className: `method ${method}` }, method.toUpperCase());

function callOf(method, path, call, schemas) {
  const parameters = (call.parameters ?? []).map((one) => field(one.name, { ...one.schema, description: one.description ?? one.schema?.description }, one.required, one.in === "path" ? "" : one.in));
  const head = make("summary", {}, badge(method), make("code", { className: "path" }, path), make("span", { className: "soft" }, call.description?.split("\n")[0] ?? call.summary));
  const rest = [make("pre", { tabIndex: 0 }, curl(method, path, call, schemas)), ...table("Parameters", parameters), ...bodyOf(call, schemas), ...answersOf(call)];
  return make("details", { id: idOf(method, path), className: "call" }, head, make("div", { className: "inside" }, ...rest));
}

function draw({ info, paths, components }) {
  const schemas = components?.schemas ?? {};
  byId("about").textContent = info.description;
  byId("version").textContent = info.version;
  byId("version").hidden = false;
  const groups = new Map();
  for (const [path, calls] of Object.entries(paths)) {
    for (const [method, call] of Object.entries(calls)) {
      const tag = call.tags?.[0] ?? OTHERS;
      groups.set(tag, [...(groups.get(tag) ?? []), [method, path, call]]);
    }
  }
  for (const [tag, calls] of groups) {
    byId("calls").append(make("section", { id: `group-${tag}` }, make("h2", {}, tag), ...calls.map(([method, path, call]) => callOf(method, path, call, schemas))));
    byId("index").append(make("b", {}, tag), ...calls.map(([method, path]) => make("a", { href: `#${idOf(method, path)}` }, badge(method), path.replace("/v1/", "").replace(/\{\w*id\}/g, "{id}"))));
  }
  const objects = Object.entries(schemas).filter(([name]) => !name.endsWith("ValidationError")).map(([name, schema]) => objectOf(name, schema));
  byId("calls").append(make("section", {}, make("h2", {}, "objects"), ...objects));
}

function objectOf(name, schema) {
  const head = make("summary", {}, make("code", { className: "path" }, name), make("span", { className: "soft" }, schema.description?.split("\n")[0] ?? ""));
  return make("details", { id: `object-${name}`, className: "call" }, head, make("div", { className: "inside" }, ...table(`Fields of ${name}`, fieldsOf(schema))));
}

/** Opens what the address names, so that links to it show it. */
function openNamed() {
  const found = byId(decodeURIComponent(location.hash.slice(1)));
  if (found?.tagName !== "DETAILS") return;
  found.open = true;
  found.scrollIntoView();
}

async function start() {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`status ${response.status}`);
  draw(await response.json());
  openNamed();
}

addEventListener("hashchange", openNamed);
start().catch((error) => { byId("docs-error").textContent = `The list of calls could not be read (${error.message}). Load this page again.`; });
