// A field for each kind of option, made from its JSON schema: nothing here knows an option by what it means.

import { h, newId, words } from "./dom.js";
import { LoraField } from "./loras.js";
import { MaskField } from "./mask.js";
import { PictureField } from "./pictures.js";

const SHORT = 14; // letters of a default that fit into an empty field

/** Return the schema without the null that it may also be, and what it says besides. */
function plainSchema(schema) {
  const some = (schema.anyOf ?? []).filter((each) => each.type !== "null");
  if (!some.length) return schema;
  const { anyOf, ...outer } = schema;
  if (some.length === 1) return { ...plainSchema(some[0]), ...outer };
  // A group may also be a shorter text or True: the form asks for the group.
  const group = some.map(plainSchema).find((each) => each.type === "object");
  const takesTrue = some.some((each) => each.type === "boolean");
  return group
    ? { ...group, ...outer, description: outer.description ?? group.description, takesTrue }
    : { ...some[0], ...outer };
}

const isPicture = (schema) => schema?.contentEncoding === "base64";

/** Return the words of a pattern that is nothing but a choice of words. */
function choices(schema) {
  if (schema.enum) return schema.enum;
  const inner = schema.pattern?.match(/^\^\(([\w|-]+)\)\$$/)?.[1];
  return inner?.includes("|") ? inner.split("|") : null;
}

const number = (value) => (value === 2 ** 63 || value === 9223372036854775807n ? "2⁶³ - 1" : String(value));

/** Return what a field is, its range and its default, as the command's help says them. */
function hint(schema, preset) {
  const said = [];
  const { minimum, maximum } = schema.items && !isPicture(schema.items) ? schema.items : schema;
  if (minimum !== undefined && maximum !== undefined) said.push(`${number(minimum)} to ${number(maximum)}`);
  else if (minimum !== undefined) said.push(`at least ${number(minimum)}`);
  if (schema.multipleOf) said.push(`a multiple of ${schema.multipleOf}`);
  const own = preset ?? schema["x-default"] ?? (typeof schema.default === "object" ? undefined : schema.default);
  if (own !== undefined && own !== null && own !== "") said.push(`default: ${own}`);
  const limits = said.length ? ` (${said.join("; ")})` : "";
  return `${forPeople(schema.description ?? "")}${limits}`;
}

/** Return a description without the types that Python's callers pass. */
const forPeople = (text) => text.replace(/: a Pillow image[^;]*/, "").replace(/: an? [A-Z]\w+$/, "");

/** Return a whole number, a BigInt where JavaScript's own numbers are not exact. */
function whole(text) {
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : BigInt(text);
}

/** A field with one control; empty means the default. */
class Simple {
  constructor(name, schema, { label = words(name), preset, control, wide = false, required = false }) {
    this.name = name;
    this.schema = schema;
    this.input = control;
    this.input.id = newId();
    this.input.required = required;
    const described = newId();
    this.input.setAttribute("aria-describedby", described);
    const named = h("label", { for: this.input.id }, label);
    this.node = h(
      "div",
      { class: wide ? "field wide" : "field", "data-name": name },
      named,
      control,
      h("p", { class: "hint", id: described }, hint(schema, preset)),
    );
  }

  get isSet() {
    return this.input.value.trim() !== "";
  }

  get missing() {
    return this.input.validity.valid ? "" : this.input.validationMessage;
  }

  async value() {
    return this.isSet ? this.read(this.input.value.trim()) : undefined;
  }

  read(text) {
    return text;
  }

  set(value) {
    this.input.value = value === null || value === undefined ? "" : String(value);
  }

  clear() {
    this.set(null);
  }

  get state() {
    return this.input.value;
  }

  set state(text) {
    this.input.value = text;
  }
}

/** A long text. */
class TextArea extends Simple {
  constructor(name, schema, more) {
    super(name, schema, {
      ...more,
      wide: true,
      control: h("textarea", { rows: more.required ? 3 : 1, autocomplete: "off", dir: "auto" }),
    });
  }
}

/** A text or a number. */
class Line extends Simple {
  constructor(name, schema, more) {
    const isNumber = schema.type === "integer" || schema.type === "number";
    const own = String(more.preset ?? schema["x-default"] ?? "");
    const control = h("input", {
      // Not of type "number" where JavaScript's numbers are not exact, as of seeds.
      type: isNumber && !(schema.maximum > Number.MAX_SAFE_INTEGER) ? "number" : "text",
      inputmode: isNumber ? (schema.type === "integer" ? "numeric" : "decimal") : null,
      pattern: isNumber ? "-?[0-9.]+" : null,
      min: schema.minimum,
      max: schema.maximum > Number.MAX_SAFE_INTEGER ? null : schema.maximum,
      step: schema.type === "integer" ? (schema.multipleOf ?? 1) : "any",
      placeholder: own.length <= SHORT ? own : null,
      autocomplete: "off",
    });
    super(name, schema, { ...more, control });
  }

  read(text) {
    if (this.schema.type === "integer") return whole(text);
    return this.schema.type === "number" ? Number(text) : text;
  }
}

/** A name out of several. */
class Select extends Simple {
  constructor(name, schema, more) {
    const own = String(more.preset ?? schema["x-default"] ?? "");
    const nothing = own && own.length <= SHORT ? `default: ${own}` : "default";
    const control = h(
      "select",
      {},
      h("option", { value: "" }, nothing),
      choices(schema).map((each) => h("option", {}, each)),
    );
    super(name, schema, { ...more, control });
  }
}

/** Several numbers, separated by commas. */
class Numbers extends Simple {
  constructor(name, schema, more) {
    super(name, schema, {
      ...more,
      wide: true,
      control: h("input", {
        type: "text",
        placeholder: "N, N, …",
        pattern: "\\s*-?[0-9.]+(\\s*,\\s*-?[0-9.]+)*\\s*",
        autocomplete: "off",
      }),
    });
  }

  read(text) {
    return text.split(",").map(Number);
  }

  set(value) {
    super.set(Array.isArray(value) ? value.join(", ") : value);
  }
}

/** True or False. */
class Switch extends Simple {
  constructor(name, schema, more) {
    const own = more.preset ?? (schema.default !== null ? schema.default : undefined) ?? schema["x-default"];
    super(name, schema, { ...more, required: false, control: h("input", { type: "checkbox" }) });
    this.own = String(own).toLowerCase() === "true";
    this.node.classList.add("switch");
    this.clear();
  }

  get isSet() {
    return this.input.checked !== this.own;
  }

  read() {
    return this.input.checked;
  }

  set(value) {
    this.input.checked = value ?? this.own;
  }

  get state() {
    return this.input.checked;
  }

  set state(checked) {
    this.input.checked = checked;
  }
}

/** Options that are passed as one object, behind a switch. */
class Group {
  constructor(name, schema, more) {
    this.name = name;
    this.takesTrue = schema.takesTrue;
    const inner = { ...more, preset: undefined, presets: {}, path: `${more.path ?? ""}${name}.` };
    const required = new Set(schema.required ?? []);
    this.fields = Object.entries(schema.properties).map(([key, each]) =>
      makeField(key, each, { ...inner, required: required.has(key) }),
    );
    this.input = h("input", { type: "checkbox", id: newId(), onchange: () => this.show() });
    this.inner = h(
      "div",
      { class: "fields" },
      this.fields.map((field) => field.node),
    );
    this.node = h(
      "div",
      { class: "field wide group", "data-name": name },
      h("div", { class: "switch" }, this.input, h("label", { for: this.input.id }, words(name))),
      h("p", { class: "hint" }, forPeople(schema.description ?? "")),
      this.inner,
    );
    this.show();
  }

  show() {
    this.inner.hidden = !this.input.checked;
    // What is hidden is neither asked for nor checked.
    for (const each of this.inner.querySelectorAll("input, select, textarea")) each.disabled = !this.input.checked;
  }

  get isSet() {
    return this.input.checked;
  }

  get missing() {
    return this.isSet ? (this.fields.find((field) => field.missing)?.missing ?? "") : "";
  }

  async value() {
    if (!this.isSet) return undefined;
    const found = {};
    for (const field of this.fields) {
      const value = await field.value();
      if (value !== undefined) found[field.name] = value;
    }
    return this.takesTrue && !Object.keys(found).length ? true : found;
  }

  set(value) {
    this.input.checked = Boolean(value);
    const given = typeof value === "object" && value ? value : {};
    // The shorter form of a group is the name of its first field.
    if (typeof value === "string") given[this.fields[0].name] = value;
    for (const field of this.fields) field.set(given[field.name]);
    this.show();
  }

  clear() {
    this.set(null);
  }

  get state() {
    return {
      on: this.input.checked,
      fields: Object.fromEntries(this.fields.map((field) => [field.name, field.state])),
    };
  }

  set state({ on, fields }) {
    this.input.checked = on;
    for (const field of this.fields) if (field.name in fields) field.state = fields[field.name];
    this.show();
  }
}

/**
 * Return the field of an option.
 *
 * @param name of the option.
 * @param given its schema.
 * @param more required, presets (the model's own defaults), say (tells the person), loras and upscalers (names).
 */
export function makeField(name, given, more) {
  const schema = plainSchema(given);
  const preset = more.presets[name];
  const made = { ...more, preset };
  const label = words(name);
  if (isPicture(schema)) {
    if (name === "mask") return new MaskField(name, label, hint(schema), made);
    return new PictureField(name, label, hint(schema), made);
  }
  if (isPicture(schema.items)) return new PictureField(name, label, hint(schema), { ...made, several: true });
  if (schema.type === "array" && plainSchema(schema.items).type === "object") {
    return new LoraField(name, plainSchema(schema.items), made);
  }
  if (schema.type === "object") return new Group(name, schema, made);
  if (`${more.path ?? ""}${name}` === "hires.model") return new Select(name, { ...schema, enum: more.upscalers }, made);
  if (choices(schema)) return new Select(name, schema, made);
  if (schema.type === "array") return new Numbers(name, schema, made);
  if (schema.type === "boolean") return new Switch(name, schema, made);
  if (schema.type === "string" && schema["x-panel"] === "Prompt") return new TextArea(name, schema, made);
  return new Line(name, schema, made);
}
