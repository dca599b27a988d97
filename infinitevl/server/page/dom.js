// Small helpers to make elements. Text always becomes a text node, never HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties (or attributes, where the name has a dash) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** One of the icons that index.html defines, for example "close". */
export function icon(name) {
  const svg = makeSvg("svg", { "aria-hidden": "true" });
  svg.append(makeSvg("use", { href: `#i-${name}` }));
  return svg;
}

export function makeSvg(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Changes an icon that is already shown. */
export const setIcon = (button, name) => button.querySelector("use").setAttribute("href", `#i-${name}`);
