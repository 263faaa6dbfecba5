// The job that is looked at: how far it is, its pictures, what can be done with them, and what they took.

import { address, get, remove, request } from "./api.js";
import { button, bytes, count, h, seconds, valueText, words } from "./dom.js";
import { enlarge } from "./enlarge.js";
import { cancel, follow, isOver, phaseText } from "./jobs.js";
import { reportView } from "./report.js";

/**
 * The stage.
 *
 * @param node where it is.
 * @param acts what pictures are for: again(job, seed), uses(), use(file, mode), removed(job), ended(job).
 * @param say tells the person something.
 */
export class Stage {
  constructor(node, acts, say) {
    this.node = node;
    this.acts = acts;
    this.say = say;
    this.job = null;
    this.chosen = 0;
    this.following = null;
  }

  /** Whether what is shown is under way. */
  get isBusy() {
    return this.job !== null && !isOver(this.job);
  }

  /** Show a job, and follow it while it is under way. */
  show(job) {
    this.following?.abort();
    this.following = null;
    this.job = job;
    this.node.dataset.job = job.id;
    this.chosen = 0;
    if (isOver(job)) {
      this.showEnd();
      return;
    }
    this.showProgress();
    this.following = new AbortController();
    const { signal } = this.following;
    follow(job.id, signal, (now, progress) => {
      if (signal.aborted) return;
      if (now) this.job = { ...this.job, ...now };
      if (isOver(this.job)) {
        this.following = null;
        this.showEnd();
        this.acts.ended(this.job);
      } else this.update(progress);
    });
  }

  // --- under way -----------------------------------------------------------------------------------------------------

  showProgress() {
    this.preview = h("img", { class: "preview", alt: "Preview of the picture that is being drawn", hidden: true });
    this.bar = h("progress", { max: "1", value: "0", "aria-label": "Progress" });
    this.phase = h("span", { role: "status" }, phaseText(this.job, null));
    this.detail = h("span", { class: "muted" });
    const { options } = this.job;
    this.canvas = h("div", { class: "canvas empty" }, this.preview);
    // The picture's own proportions, so that nothing jumps when it comes.
    if (options.width && options.height) this.canvas.style.aspectRatio = `${options.width} / ${options.height}`;
    const stop = button("Cancel", () => cancel(this.job).catch((error) => this.say(error.message)), {
      class: "cancel",
    });
    this.node.replaceChildren(
      h("div", { class: "row spread" }, h("span", { class: "row" }, this.phase, this.detail), stop),
      this.bar,
      this.canvas,
      this.prompt(),
    );
    this.node.setAttribute("aria-busy", "true");
  }

  update(progress) {
    const said = phaseText(this.job, progress);
    // Screen readers hear of a phase once, and not of each step.
    const [phase] = said.match(/^[^\d]+/) ?? [said];
    if (this.phase.textContent !== phase.trim()) this.phase.textContent = phase.trim();
    this.detail.textContent = said.slice(phase.length);
    if (!progress) return;
    if (progress.fraction) this.bar.value = progress.fraction;
    if (progress.seconds > 0.5) this.detail.textContent += ` · ${seconds(progress.seconds)}`;
    if (progress.phase === "loading" && progress.bytes) this.detail.textContent = bytes(progress.bytes);
    if (progress.preview) {
      this.preview.src = progress.preview;
      this.preview.hidden = false;
      this.canvas.classList.remove("empty");
    }
  }

  // --- ended ---------------------------------------------------------------------------------------------------------

  showEnd() {
    const { job } = this;
    this.node.removeAttribute("aria-busy");
    const status = h("p", { role: "status", class: job.state === "failed" ? "error" : "muted" }, this.endText());
    if (!job.pictures.length) {
      const again = button("Again with these parameters", () => this.acts.again(job, null));
      this.node.replaceChildren(
        status,
        this.prompt(),
        h("div", { class: "row tools" }, again, this.removeButton()),
        this.log(),
      );
      return;
    }
    this.tools = h("div", { class: "row tools", role: "group", "aria-label": "This picture" });
    const many = job.pictures.length > 1;
    this.figures = job.pictures.map((path, index) => this.figure(path, index, many));
    const grid = h("div", { class: many ? "canvas grid" : "canvas" }, this.figures);
    const report = h("div", { class: "report" });
    const warnings = job.warnings.length
      ? h(
          "ul",
          { class: "warnings" },
          job.warnings.map((each) => h("li", {}, each)),
        )
      : null;
    this.node.replaceChildren(status, grid, this.tools, this.prompt(), warnings ?? "", report);
    this.choose(0);
    get(`/api/jobs/${job.id}/report`).then(
      (found) => this.job === job && report.replaceChildren(...reportView(found), this.parameters(found)),
      () => {},
    );
  }

  endText() {
    const { job } = this;
    if (job.state === "failed") return `It failed: ${job.error.message}`;
    if (job.state === "cancelled") return "Cancelled";
    if (!job.pictures.length) return "Its pictures are no longer kept";
    const { total } = job.timings;
    const what = job.mode.endsWith("vid") ? "1 video" : count(job.pictures.length, "picture");
    return total ? `${what} in ${seconds(total)}` : what;
  }

  prompt() {
    return this.job.options.prompt ? h("p", { class: "prompt", dir: "auto" }, this.job.options.prompt) : "";
  }

  log() {
    const lines = this.job.error?.engine_log ?? [];
    return lines.length
      ? h("details", { class: "panel" }, h("summary", {}, "What the engine said"), h("pre", {}, lines.join("\n")))
      : "";
  }

  figure(path, index, many) {
    const { job } = this;
    const seed = job.seeds[index] ?? job.seeds[0];
    const which = many ? `Picture ${index + 1} of ${job.pictures.length}` : "The picture";
    const name = job.options.prompt ? `${which}: ${job.options.prompt}` : which;
    const image = h("img", { alt: name });
    const open = button(image, () => (many && this.chosen !== index ? this.choose(index) : this.enlarge(index)), {
      class: "shown",
      title: many ? "Choose; again: enlarge" : "Enlarge",
    });
    address(path).then(
      (url) => {
        // Some videos are no images.
        image.onerror = () =>
          open.replaceChildren(h("video", { src: url, controls: true, loop: true, muted: true, autoplay: true }));
        image.src = url;
      },
      () => (image.alt = "This picture cannot be got"),
    );
    return h("figure", {}, open, seed === undefined ? "" : h("figcaption", {}, `seed ${seed}`));
  }

  choose(index) {
    this.chosen = index;
    const { job } = this;
    for (const [at, figure] of this.figures.entries())
      figure.classList.toggle("chosen", at === index && this.figures.length > 1);
    const seed = job.seeds[index] ?? job.seeds[0] ?? null;
    const use = (mode) => async () => this.acts.use(await this.file(index), mode);
    const isPicture = !job.mode.endsWith("vid");
    const which = job.pictures.length > 1 ? `Picture ${index + 1}:` : "";
    this.tools.replaceChildren(
      which ? h("span", { class: "muted" }, which) : "",
      button("Again", () => this.acts.again(job, seed), { title: "Take its parameters and its seed into the form" }),
      ...(isPicture ? this.acts.uses().map(({ text, name }) => button(text, use(name), { title: name })) : []),
      button("Enlarge", () => this.enlarge(index)),
      button("Save", async () => this.save(index)),
      this.removeButton(),
    );
  }

  removeButton() {
    return button(
      "Remove",
      async () => {
        const { job } = this;
        try {
          await remove(`/api/jobs/${job.id}`);
          this.acts.removed(job);
        } catch (error) {
          this.say(error.message);
        }
      },
      { class: "quiet", title: "Forget this job and its pictures" },
    );
  }

  /** Forget what is shown. */
  clear(...instead) {
    this.following?.abort();
    this.job = null;
    this.node.replaceChildren(...instead);
  }

  enlarge(index) {
    const { job } = this;
    enlarge(job.pictures, index, (at) => `${job.options.prompt ?? ""} · seed ${job.seeds[at] ?? job.seeds[0] ?? "-"}`);
  }

  /** Return a picture as a file. */
  async file(index) {
    const response = await request(this.job.pictures[index]);
    const blob = await response.blob();
    const suffix = blob.type.split("/")[1] ?? "png";
    return new File([blob], `${this.job.id.slice(0, 8)}-${index}.${suffix}`, { type: blob.type });
  }

  async save(index) {
    const file = await this.file(index);
    const url = URL.createObjectURL(file);
    h("a", { href: url, download: file.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  parameters(report) {
    const rows = Object.entries(report.parameters)
      .filter(([name]) => name !== "prompt")
      .map(([name, value]) => h("div", {}, h("dt", {}, words(name)), h("dd", {}, valueText(value))));
    if (!rows.length) return "";
    const text = report.text[this.chosen] ?? report.text[0] ?? "";
    const copy = button("Copy as text", async () => {
      await navigator.clipboard.writeText(report.text[this.chosen] ?? text);
      this.say("copied");
    });
    return h(
      "details",
      { class: "panel" },
      h("summary", {}, "Parameters"),
      h("dl", { class: "parameters" }, rows),
      text && navigator.clipboard ? copy : "",
    );
  }
}
