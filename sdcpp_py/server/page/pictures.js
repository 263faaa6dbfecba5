// Pictures that go in: chosen, dropped or pasted, looked at, and sent as data URLs.

import { button, h, newId } from "./dom.js";

const TYPES = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/avif";

/** Return a file as a data URL. */
function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name || "the picture"} cannot be read`));
    reader.readAsDataURL(file);
  });
}

/** Return the first picture among what was dropped or pasted, null for none. */
export function pictureOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

/** Return whether something that is dragged has files. */
export const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

/** Have an element take pictures that are dropped on it, before the page does. */
export function takeDrops(node, take) {
  node.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    node.classList.add("over");
  });
  node.addEventListener("dragleave", () => node.classList.remove("over"));
  node.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    node.classList.remove("over");
    take([...event.dataTransfer.files].filter((file) => file.type.startsWith("image/")));
  });
}

/** Return a button that opens the system's dialog for pictures. */
function chooser(text, several, take, describedBy) {
  const id = newId();
  const input = h("input", {
    type: "file",
    id,
    accept: TYPES,
    multiple: several,
    class: "unseen",
    "aria-describedby": describedBy,
  });
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
  const label = h("label", { for: id, class: "choose" }, text);
  return { input, nodes: [input, label] };
}

/** A picture with its address and size, once it could be decoded. */
async function decoded(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${file.name || "this file"} is no picture that this browser shows`);
  }
  return { file, url, image, width: image.naturalWidth, height: image.naturalHeight };
}

/**
 * A field for one picture, or for several in their order.
 *
 * @param several whether it takes several.
 * @param say tells the person what went wrong.
 */
export class PictureField {
  constructor(name, label, hint, { several = false, required = false, say }) {
    this.name = name;
    this.several = several;
    this.required = required;
    this.items = [];
    this.onchange = () => {};
    this.say = say;
    const describedBy = newId();
    this.list = h("ul", { class: "thumbs" });
    const open = chooser(
      several ? "Add pictures…" : "Choose a picture…",
      several,
      (files) => this.take(files),
      describedBy,
    );
    this.input = open.input;
    this.zone = h(
      "div",
      { class: "zone" },
      this.list,
      h("div", { class: "row" }, open.nodes, h("span", { class: "muted" }, "or drop it here")),
    );
    this.node = h(
      "fieldset",
      { class: "field wide picture", "data-name": name },
      h("legend", {}, label),
      this.zone,
      h("p", { class: "hint", id: describedBy }, hint),
    );
    takeDrops(this.zone, (files) => this.take(files));
  }

  /** Take files: the first one, or all of them; tell whether they are pictures. */
  async take(files) {
    try {
      const found = await Promise.all((this.several ? files : files.slice(0, 1)).map(decoded));
      if (!found.length) throw new Error("that is no picture");
      this.items = this.several ? [...this.items, ...found] : found;
      this.show();
      return true;
    } catch (error) {
      this.say(error.message);
      return false;
    }
  }

  show() {
    this.input.setCustomValidity("");
    this.list.replaceChildren(...this.items.map((item, index) => this.thumb(item, index)));
    this.zone.classList.toggle("full", this.items.length > 0);
    this.onchange(this);
  }

  thumb(item, index) {
    const which = this.several ? `picture ${index + 1}` : "the picture";
    const moved = (by) => {
      this.items.splice(index, 1);
      this.items.splice(index + by, 0, item);
      this.show();
    };
    const image = h("img", { src: item.url, alt: `${which}, ${item.width} by ${item.height} pixels` });
    const earlier =
      this.several && index ? button("←", () => moved(-1), { "aria-label": `Move ${which} forward` }) : null;
    const away = button(
      "×",
      () => {
        this.items.splice(index, 1);
        this.show();
        this.input.focus();
      },
      { "aria-label": `Remove ${which}` },
    );
    return h("li", {}, image, h("span", { class: "muted" }, `${item.width}×${item.height}`), earlier, away);
  }

  /** Say what is missing; "" for nothing. */
  get missing() {
    return this.required && !this.items.length ? "Choose a picture" : "";
  }

  async value() {
    const urls = await Promise.all(this.items.map((item) => dataUrl(item.file)));
    if (!urls.length) return undefined;
    return this.several ? urls : urls[0];
  }

  /** What is set, in words, for the panel's heading. */
  get isSet() {
    return this.items.length > 0;
  }

  set() {
    // A job tells the numbers of its pictures, not the pictures: what is here stays until they are brought.
  }

  /** Take other files in place of what is here. */
  async bring(files) {
    this.items = [];
    await this.take(files);
  }

  clear() {
    this.items = [];
    this.show();
  }

  get state() {
    return this.items;
  }

  set state(items) {
    this.items = this.several ? items : items.slice(0, 1);
    this.show();
  }
}
