// A mask that is painted over a picture: brush and eraser, by pointer or by keyboard, each stroke undone and redone.

import { button, h, newId } from "./dom.js";
import { takeDrops } from "./pictures.js";

const COLOUR = "#ff2e93"; // unlike most of what pictures have; it is shown half transparent

/**
 * The painter of a mask; what is painted is drawn anew.
 *
 * Strokes are kept as points, not as pixels: undoing paints what is left again, and takes no memory.
 */
export class MaskField {
  constructor(name, label, hint, { say }) {
    this.name = name;
    this.required = true;
    this.say = say;
    this.picture = null;
    this.strokes = [];
    this.undone = [];
    this.erasing = false;
    this.at = { x: 0, y: 0 };
    this.isDown = false; // of the keyboard's brush
    this.onchange = () => {};
    const describedBy = newId();
    this.shown = h("canvas", { "aria-hidden": "true" });
    this.canvas = h("canvas", {
      class: "mask",
      tabindex: "0",
      role: "application",
      "aria-label":
        "Mask: arrow keys move the brush, Space puts it down and lifts it, B is brush, E eraser, [ and ] change its size, Control Z undoes",
      onpointerdown: (event) => this.pointerDown(event),
      onpointermove: (event) => this.pointerMove(event),
      onpointerup: () => this.end(),
      onpointercancel: () => this.end(),
      onpointerleave: () => (this.ring.hidden = document.activeElement !== this.canvas),
      onkeydown: (event) => this.key(event),
      onfocus: () => this.showRing(),
      onblur: () => {
        this.isDown = false;
        this.ring.hidden = true;
      },
    });
    this.ring = h("div", { class: "ring", hidden: true, "aria-hidden": "true" });
    this.board = h("div", { class: "board" }, this.shown, this.canvas, this.ring);
    this.size = h("input", { type: "range", min: "2", max: "200", value: "40", oninput: () => this.showRing() });
    this.brush = button("Brush", () => this.take(false), { "aria-pressed": "true" });
    this.eraser = button("Eraser", () => this.take(true), { "aria-pressed": "false" });
    this.back = button("Undo", () => this.undo(), { title: "Control Z" });
    this.again = button("Redo", () => this.redo(), { title: "Control Y" });
    this.larger = button("Larger", () => this.enlarge());
    this.status = h("p", { class: "unseen", role: "status" });
    this.tools = h(
      "div",
      { class: "row tools", role: "group", "aria-label": "Tools of the mask" },
      this.brush,
      this.eraser,
      h("label", { class: "size" }, "Size", this.size),
      this.back,
      this.again,
      button("All", () => this.add({ kind: "all" }), { title: "Paint all, to erase what stays" }),
      button("Clear", () => this.add({ kind: "none" })),
      this.larger,
    );
    this.empty = h("p", { class: "muted" }, "Choose a picture first; then paint over what is to be drawn anew.");
    this.body = h("div", { class: "painter" }, this.board, this.tools, this.status);
    this.node = h(
      "fieldset",
      { class: "field wide", "data-name": name },
      h("legend", {}, label),
      this.empty,
      this.body,
      h("p", { class: "hint", id: describedBy }, hint),
    );
    takeDrops(this.board, (files) => this.open(files[0]));
    this.showTools();
  }

  /** Paint over another picture; what was painted stays where the size is the same. */
  of(picture) {
    const before = this.picture;
    this.picture = picture;
    this.body.hidden = !picture;
    this.empty.hidden = Boolean(picture);
    if (!picture) return;
    if (!before || before.width !== picture.width || before.height !== picture.height) {
      this.strokes = [];
      this.undone = [];
      for (const each of [this.shown, this.canvas]) {
        each.width = picture.width;
        each.height = picture.height;
      }
      const side = Math.max(picture.width, picture.height);
      this.size.max = String(Math.max(8, Math.round(side / 2)));
      this.size.value = String(Math.max(2, Math.round(side / 8)));
      this.at = { x: picture.width / 2, y: picture.height / 2 };
    }
    this.shown.getContext("2d").clearRect(0, 0, picture.width, picture.height);
    this.shown.getContext("2d").drawImage(picture.image, 0, 0);
    this.paint();
  }

  /** Take a picture as the mask: white is drawn anew. */
  async open(file) {
    if (!file || !this.picture) return;
    try {
      const image = await createImageBitmap(file);
      this.add({ kind: "picture", image });
    } catch {
      this.say(`${file.name || "this file"} is no picture that this browser shows`);
    }
  }

  // --- tools ---------------------------------------------------------------------------------------------------------

  take(erasing) {
    this.erasing = erasing;
    this.isDown = false;
    this.showTools();
    this.showRing();
  }

  showTools() {
    this.brush.setAttribute("aria-pressed", String(!this.erasing));
    this.eraser.setAttribute("aria-pressed", String(this.erasing));
    // Not "disabled", by which the button that was just pressed would lose the focus.
    this.back.setAttribute("aria-disabled", String(!this.strokes.length));
    this.again.setAttribute("aria-disabled", String(!this.undone.length));
  }

  add(stroke) {
    this.strokes.push(stroke);
    this.undone = [];
    this.paint();
  }

  undo() {
    if (this.strokes.length) this.undone.push(this.strokes.pop());
    this.paint();
  }

  redo() {
    if (this.undone.length) this.strokes.push(this.undone.pop());
    this.paint();
  }

  /** Show the painter as large as the window, and put it back when that is closed. */
  enlarge() {
    const dialog = h("dialog", { class: "enlarged", "aria-label": "Paint the mask" });
    const done = button("Done", () => dialog.close(), { class: "primary" });
    dialog.addEventListener("close", () => {
      this.larger.hidden = false;
      this.empty.after(this.body);
      dialog.remove();
      this.larger.focus();
    });
    this.larger.hidden = true;
    dialog.append(this.body, done);
    document.body.append(dialog);
    dialog.showModal();
    this.canvas.focus();
  }

  // --- painting ------------------------------------------------------------------------------------------------------

  paint() {
    const context = this.canvas.getContext("2d");
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of this.strokes) this.paintOne(context, stroke);
    this.showTools();
    this.onchange(this);
  }

  paintOne(context, stroke, from = 0) {
    const { width, height } = this.canvas;
    context.globalCompositeOperation = stroke.erasing ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = COLOUR;
    if (stroke.kind === "all") context.fillRect(0, 0, width, height);
    else if (stroke.kind === "none") context.clearRect(0, 0, width, height);
    else if (stroke.kind === "picture") this.paintPicture(context, stroke.image);
    else {
      context.lineCap = context.lineJoin = "round";
      context.lineWidth = stroke.size;
      context.beginPath();
      const points = stroke.points.slice(Math.max(0, from - 1));
      context.moveTo(points[0].x, points[0].y);
      for (const point of points) context.lineTo(point.x, point.y);
      context.stroke();
    }
  }

  /** Paint where a picture is white, as much as it is. */
  paintPicture(context, image) {
    const { width, height } = this.canvas;
    const part = new OffscreenCanvas(width, height);
    const inner = part.getContext("2d");
    inner.drawImage(image, 0, 0, width, height);
    const pixels = inner.getImageData(0, 0, width, height);
    const [red, green, blue] = [1, 3, 5].map((start) => Number.parseInt(COLOUR.slice(start, start + 2), 16));
    for (let index = 0; index < pixels.data.length; index += 4) {
      const level = (pixels.data[index] + pixels.data[index + 1] + pixels.data[index + 2]) / 3;
      pixels.data.set([red, green, blue, (level * pixels.data[index + 3]) / 255], index);
    }
    inner.putImageData(pixels, 0, 0);
    context.clearRect(0, 0, width, height);
    context.drawImage(part, 0, 0);
  }

  begin(point) {
    this.stroke = { erasing: this.erasing, size: Number(this.size.value), points: [point] };
    this.add(this.stroke);
  }

  /** Go on with the stroke under way: its last part alone is painted. */
  line(point) {
    this.stroke.points.push(point);
    this.paintOne(this.canvas.getContext("2d"), this.stroke, this.stroke.points.length - 1);
  }

  end() {
    if (this.stroke) this.onchange(this);
    this.stroke = null;
  }

  pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  pointerDown(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.isDown = false;
    this.at = this.pointOf(event);
    this.begin(this.at);
    this.showRing();
  }

  pointerMove(event) {
    if (this.isDown) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      this.at = this.pointOf(each);
      if (this.stroke) this.line(this.at);
    }
    this.showRing();
  }

  key(event) {
    const far = Math.max(1, event.shiftKey ? 1 : Number(this.size.value) / 4);
    const moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    const resize = (by) => {
      this.size.value = String(Number(this.size.value) * by);
      this.tell(`size ${this.size.value}`);
    };
    const control = event.ctrlKey || event.metaKey;
    const acts = {
      " ": () => this.putDown(!this.isDown),
      b: () => this.take(false),
      e: () => this.take(true),
      "[": () => resize(0.8),
      "]": () => resize(1.25),
    };
    if (control && event.key.toLowerCase() === "z") event.shiftKey ? this.redo() : this.undo();
    else if (control && event.key.toLowerCase() === "y") this.redo();
    else if (!control && moves[event.key]) this.move(...moves[event.key]);
    else if (!control && acts[event.key]) acts[event.key]();
    else return;
    event.preventDefault();
    this.showRing();
  }

  putDown(down) {
    this.isDown = down;
    if (down) this.begin({ ...this.at });
    else this.end();
    this.tell(down ? `${this.erasing ? "eraser" : "brush"} down` : "lifted");
  }

  move(x, y) {
    const inside = (value, most) => Math.min(most, Math.max(0, value));
    this.at = { x: inside(this.at.x + x, this.canvas.width), y: inside(this.at.y + y, this.canvas.height) };
    if (this.isDown && this.stroke) this.line({ ...this.at });
  }

  tell(text) {
    this.status.textContent = text;
  }

  showRing() {
    const { width, height } = this.canvas;
    const size = Number(this.size.value);
    const style = this.ring.style;
    style.left = `${((this.at.x - size / 2) / width) * 100}%`;
    style.top = `${((this.at.y - size / 2) / height) * 100}%`;
    style.width = `${(size / width) * 100}%`;
    style.height = `${(size / height) * 100}%`;
    this.ring.hidden = false;
    this.ring.classList.toggle("down", this.isDown || Boolean(this.stroke));
  }

  // --- as a field ----------------------------------------------------------------------------------------------------

  get isSet() {
    return this.strokes.length > 0;
  }

  get missing() {
    return this.picture && !this.isSet ? "Paint over what is to be drawn anew" : "";
  }

  get input() {
    return this.canvas;
  }

  /** The mask as a file: white where it is painted, black elsewhere. */
  async value() {
    if (!this.picture) return undefined;
    const made = h("canvas", { width: this.canvas.width, height: this.canvas.height });
    const context = made.getContext("2d");
    context.drawImage(this.canvas, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, made.width, made.height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#000";
    context.fillRect(0, 0, made.width, made.height);
    return made.toDataURL("image/png");
  }

  set() {
    // As with pictures: a job does not tell its mask.
  }

  /** Take a mask in place of what is painted. */
  async bring([file]) {
    this.strokes = [];
    await this.open(file);
  }

  clear() {
    this.strokes = [];
    this.undone = [];
    this.paint();
  }

  get state() {
    return { strokes: this.strokes, width: this.canvas.width, height: this.canvas.height };
  }

  set state({ strokes, width, height }) {
    if (!this.picture || width !== this.canvas.width || height !== this.canvas.height) return; // of another picture
    this.strokes = strokes;
    this.undone = [];
    this.paint();
  }
}
