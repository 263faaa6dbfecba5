// The LoRAs of a picture, chosen among those of the model's folder.

import { button, h, newId, words } from "./dom.js";

/** A list of LoRAs, each with its strength. */
export class LoraField {
  constructor(name, schema, { loras = [] }) {
    this.name = name;
    this.names = loras;
    this.rows = [];
    // What a LoRA has besides its file and its strength, such as the model of two that it is for.
    this.switches = Object.entries(schema.properties).filter(([, each]) => each.type === "boolean");
    this.strength = schema.properties.multiplier ?? {};
    this.picker = h(
      "select",
      { id: newId(), onchange: () => this.pick() },
      h("option", { value: "" }, loras.length ? "Add a LoRA…" : "there are none"),
      loras.map((each) => h("option", {}, each)),
    );
    this.picker.disabled = !loras.length;
    this.input = this.picker;
    this.list = h("ul", { class: "loras" });
    const described = newId();
    this.picker.setAttribute("aria-describedby", described);
    const none =
      "this model has no folder of LoRAs; start the server with --lora-model-dir, or name one in models.toml";
    const some = "chosen by name; <lora:NAME:0.8> in the prompt does the same";
    this.node = h(
      "div",
      { class: "field wide", "data-name": name },
      h("label", { for: this.picker.id }, words(name)),
      this.picker,
      this.list,
      h("p", { class: "hint", id: described }, loras.length ? some : none),
    );
  }

  pick() {
    if (!this.picker.value) return;
    const row = this.add({ path: this.picker.value });
    this.picker.value = "";
    row.multiplier.focus();
  }

  add(lora) {
    const multiplier = h("input", {
      type: "number",
      step: "0.05",
      min: this.strength.minimum,
      max: this.strength.maximum,
      value: lora.multiplier ?? this.strength.default ?? 1,
      "aria-label": `Strength of ${lora.path}`,
    });
    const switches = this.switches.map(([key, schema]) => {
      const input = h("input", { type: "checkbox", id: newId() });
      input.checked = Boolean(lora[key]);
      return {
        key,
        input,
        node: h(
          "span",
          { class: "switch", title: schema.description },
          input,
          h("label", { for: input.id }, words(key)),
        ),
      };
    });
    const row = { path: lora.path, multiplier, switches };
    row.node = h(
      "li",
      {},
      h("span", { class: "name" }, lora.path),
      multiplier,
      switches.map((each) => each.node),
      button(
        "×",
        () => {
          this.rows = this.rows.filter((each) => each !== row);
          row.node.remove();
          this.picker.focus();
          this.picker.dispatchEvent(new Event("input", { bubbles: true }));
        },
        { "aria-label": `Remove ${lora.path}` },
      ),
    );
    this.rows.push(row);
    this.list.append(row.node);
    return row;
  }

  get isSet() {
    return this.rows.length > 0;
  }

  get missing() {
    const wrong = this.rows.find((row) => !row.multiplier.validity.valid || row.multiplier.value === "");
    return wrong ? `The strength of ${wrong.path} must be a number` : "";
  }

  get state() {
    return this.rows.map((row) => ({
      path: row.path,
      multiplier: Number(row.multiplier.value),
      ...Object.fromEntries(row.switches.filter((each) => each.input.checked).map((each) => [each.key, true])),
    }));
  }

  set state(loras) {
    this.clear();
    for (const lora of loras) this.add(lora);
  }

  async value() {
    return this.isSet ? this.state : undefined;
  }

  set(value) {
    const list = Array.isArray(value)
      ? value
      : Object.entries(value ?? {}).map(([path, multiplier]) => ({ path, multiplier }));
    this.state = list.map((each) => (typeof each === "string" ? { path: each } : each));
  }

  clear() {
    this.rows = [];
    this.list.replaceChildren();
  }
}
