// The form of a mode's options: a panel for each heading that the options are declared under.

import { h } from "./dom.js";
import { makeField } from "./fields.js";

const ORDER = ["Pictures in", "Picture", "Sampling", "Guidance", "LoRA", "Second pass", "ControlNet", "Video"];
const OPEN = new Set(["Pictures in", "Picture", "Upscaling", "Video"]);
const OTHER = "More";
const KEY = "sdcpp-panels";

/** Which panels a person has opened or closed. */
const panels = JSON.parse(localStorage.getItem(KEY) ?? "{}");

/**
 * The form.
 *
 * @param subject where what every picture needs goes: the prompt and the pictures that a mode asks for.
 * @param options where all else goes.
 */
export class OptionsForm {
  constructor(subject, options, say) {
    this.subject = subject;
    this.options = options;
    this.say = say;
    this.fields = [];
    this.kept = {};
    const counted = () => this.count();
    for (const each of [subject, options]) {
      each.addEventListener("input", counted);
      each.addEventListener("change", counted);
    }
  }

  /** Show the options of a mode's schema; what was given stays, in this mode and when it comes back. */
  show(schema, presets, names) {
    this.keep();
    const required = new Set(schema.required ?? []);
    const grouped = new Map();
    this.fields = [];
    for (const [name, each] of Object.entries(schema.properties)) {
      const field = makeField(name, each, { required: required.has(name), presets, say: this.say, ...names });
      const panel = required.has(name) || each["x-panel"] === "Prompt" ? "" : (each["x-panel"] ?? OTHER);
      if (!grouped.has(panel)) grouped.set(panel, []);
      grouped.get(panel).push(field);
      this.fields.push(field);
    }
    const [image, mask] = [this.field("image"), this.field("mask")];
    if (image && mask) image.onchange = () => mask.of(image.items[0] ?? null);
    mask?.of(null);
    const isText = (field) => Number(schema.properties[field.name]["x-panel"] !== "Prompt");
    const subject = (grouped.get("") ?? []).sort((a, b) => isText(a) - isText(b));
    this.subject.replaceChildren(...subject.map((field) => field.node));
    grouped.delete("");
    const rank = (panel) => (ORDER.includes(panel) ? ORDER.indexOf(panel) : panel === OTHER ? 99 : 50);
    this.panels = [...grouped]
      .sort(([a], [b]) => rank(a) - rank(b))
      .map(([panel, fields]) => this.panel(panel, fields));
    this.options.replaceChildren(...this.panels.map((each) => each.node));
    // The picture before its mask, which is painted over it.
    for (const field of this.fields) if (field.name in this.kept) field.state = this.kept[field.name];
    this.count();
  }

  panel(name, fields) {
    const badge = h("span", { class: "badge" });
    const node = h(
      "details",
      { class: "panel", "data-panel": name },
      h("summary", {}, h("span", {}, name), badge),
      h(
        "div",
        { class: "fields" },
        fields.map((field) => field.node),
      ),
    );
    node.open = panels[name] ?? (OPEN.has(name) && !matchMedia("(max-width: 60rem)").matches);
    node.addEventListener("toggle", () => {
      panels[name] = node.open;
      localStorage.setItem(KEY, JSON.stringify(panels));
    });
    return { node, fields, badge };
  }

  /** Say in each heading how many of its options are set. */
  count() {
    for (const { fields, badge } of this.panels ?? []) {
      const set = fields.filter((field) => field.isSet).length;
      badge.textContent = set ? `${set} set` : "";
    }
  }

  field(name) {
    return this.fields.find((field) => field.name === name);
  }

  /** Remember what is given. */
  keep() {
    for (const field of this.fields) this.kept[field.name] = field.state;
  }

  /** What is given that JSON can hold, for the next time that the page is opened. */
  saved() {
    this.keep();
    const plain = Object.entries(this.kept).filter(([, state]) => typeof state !== "object");
    return Object.fromEntries(plain);
  }

  restore(saved) {
    Object.assign(this.kept, saved);
  }

  /** Give options the values of a job or a picture; those that it does not name get their defaults, pictures stay. */
  fill(values) {
    for (const field of this.fields) field.set(values[field.name]);
    this.keep();
    this.count();
  }

  /** Take every option back to its default; the prompt and the pictures stay. */
  reset() {
    for (const { fields } of this.panels) for (const field of fields) field.clear();
    this.count();
  }

  /** Show a field, and what is wrong with it. */
  point(field, message) {
    for (let node = field.node; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    this.say(`${field.name.replaceAll("_", " ")}: ${message}`);
    field.input.focus();
    field.node.scrollIntoView({ block: "nearest" });
  }

  /** Show the field that a message of the server begins with, if there is one. */
  pointFor(message) {
    const field = this.field(message.match(/^(\w+)/)?.[1]);
    if (field) this.point(field, message.slice(field.name.length).trim());
    return Boolean(field);
  }

  /** Return the options as a request has them, null where something is missing or wrong. */
  async values() {
    for (const field of this.fields) {
      const missing = field.missing;
      if (missing) {
        this.point(field, missing);
        return null;
      }
    }
    const found = {};
    for (const field of this.fields) {
      const value = await field.value();
      if (value !== undefined) found[field.name] = value;
    }
    return found;
  }
}
