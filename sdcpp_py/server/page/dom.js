// Elements and texts, made in one place.

/** Return an element. A property that begins with "on" is a listener, others are attributes; null leaves one out. */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((each) => each !== null && each !== undefined && each !== ""));
  return node;
}

/** Return a button that is none of a form's. */
export const button = (text, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, text);

let made = 0;

/** Return an id that no other element has. */
export const newId = () => `e${++made}`;

/** Return the element of an id. */
export const byId = (id) => document.getElementById(id);

/** Return a size in bytes as the package's reports show it: GiB from 1 GiB on, MiB below. */
export const bytes = (size) =>
  size >= 2 ** 30 ? `${(size / 2 ** 30).toFixed(2)} GiB` : `${(size / 2 ** 20).toFixed(1)} MiB`;

/** Return seconds, as precise as anybody wants to know them. */
export function seconds(value) {
  if (value >= 90) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

/** Return a number of things: "1 picture", "2 pictures". */
export const count = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

const ACRONYMS = { cfg: "CFG", vae: "VAE", fps: "FPS", clip: "CLIP", lora: "LoRA", loras: "LoRAs", vace: "VACE" };

/** Return the name of an option as words. */
export function words(name) {
  const text = name
    .split("_")
    .map((word) => ACRONYMS[word] ?? word)
    .join(" ");
  return text[0].toUpperCase() + text.slice(1);
}

/** Return a value of an option as text. */
export function valueText(value) {
  if (typeof value === "bigint") return String(value);
  return typeof value === "string"
    ? value
    : JSON.stringify(value, (_, each) => (typeof each === "bigint" ? String(each) : each));
}
