// All jobs of the server, the newest first: tiles with their first picture, found by words of the prompt.

import { address, get } from "./api.js";
import { button, h } from "./dom.js";
import { isOver } from "./jobs.js";

const PAGE = 24;
const WAIT = 200; // milliseconds without a key before the server is asked
const MARKS = { queued: "queued", loading: "loading", running: "drawing", failed: "failed", cancelled: "cancelled" };

/** The history. */
export class History {
  constructor(node, chosen, say) {
    this.list = h("ul", { class: "tiles" });
    this.chosen = chosen;
    this.say = say;
    this.jobs = new Map();
    this.tiles = new Map();
    this.current = null;
    this.words = "";
    this.status = h("p", { class: "muted", role: "status" });
    this.older = button("Older", () => this.load(true), { hidden: true });
    this.search = h("input", {
      type: "search",
      id: "search",
      placeholder: "words of the prompt",
      autocomplete: "off",
      dir: "auto",
    });
    this.search.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), WAIT);
    });
    node.replaceChildren(
      h(
        "div",
        { class: "row spread" },
        h("h2", {}, "History"),
        h("label", { class: "search", for: "search" }, "Search", this.search),
      ),
      this.status,
      this.list,
      this.older,
    );
  }

  /** Get jobs from the server; with *more* those before the oldest one that is shown. */
  async load(more = false) {
    this.words = this.search.value.trim();
    const query = new URLSearchParams({ limit: PAGE });
    if (this.words) query.set("search", this.words);
    const oldest = [...this.jobs.values()].at(-1);
    if (more && oldest) query.set("before", oldest.created);
    const asked = `${this.words} ${more}`;
    this.asked = asked;
    let found;
    try {
      found = (await get(`/api/jobs?${query}`)).jobs;
    } catch (error) {
      this.say(error.message);
      return;
    }
    if (this.asked !== asked) return; // another search has begun meanwhile
    if (!more) {
      this.jobs.clear();
      this.tiles.clear();
      this.list.replaceChildren();
    }
    for (const job of found) this.put(job, false);
    this.older.hidden = found.length < PAGE;
    this.tell();
  }

  tell() {
    if (this.jobs.size)
      this.status.textContent = this.words
        ? `${this.jobs.size}${this.older.hidden ? "" : " or more"} with “${this.words}”`
        : "";
    else this.status.textContent = this.words ? `Nothing with “${this.words}”` : "What you draw is kept here.";
  }

  /** Take a job as it is now: a new one goes to the front. */
  take(job) {
    if (!this.jobs.has(job.id) && !this.matches(job)) return;
    this.put(job, true);
    this.tell();
  }

  matches(job) {
    const prompt = String(job.options.prompt ?? "").toLowerCase();
    return this.words
      .toLowerCase()
      .split(/\s+/)
      .every((word) => prompt.includes(word));
  }

  put(job, first) {
    const before = this.jobs.get(job.id);
    if (before && isOver(before) && !isOver(job)) return; // an older event
    const tile = this.tile(job);
    if (before) this.tiles.get(job.id).replaceWith(tile);
    else if (first) this.list.prepend(tile);
    else this.list.append(tile);
    if (first && !before) this.jobs = new Map([[job.id, job], ...this.jobs]);
    else this.jobs.set(job.id, job);
    this.tiles.set(job.id, tile);
  }

  tile(job) {
    const prompt = job.options.prompt || "(no prompt)";
    const mark = job.state === "done" ? (job.pictures.length > 1 ? `×${job.pictures.length}` : "") : MARKS[job.state];
    const inside = h("span", { class: `face ${job.state}` });
    if (job.pictures.length) {
      const image = h("img", { loading: "lazy", alt: "" });
      image.onerror = () => image.remove(); // a video
      address(job.pictures[0]).then(
        (url) => (image.src = url),
        () => {},
      );
      inside.append(image);
    }
    if (mark) inside.append(h("span", { class: "mark" }, mark));
    const open = button([inside, h("span", { class: "text", dir: "auto" }, prompt)], () => this.chosen(this.jobs.get(job.id)), {
      "aria-current": this.current === job.id ? "true" : null,
    });
    const had = this.tiles.get(job.id)?.contains(document.activeElement);
    const tile = h("li", {}, open);
    if (had) queueMicrotask(() => open.focus());
    return tile;
  }

  /** Mark the job that is looked at. */
  mark(id) {
    this.current = id;
    for (const [each, tile] of this.tiles) {
      if (each === id) tile.firstChild.setAttribute("aria-current", "true");
      else tile.firstChild.removeAttribute("aria-current");
    }
  }

  /** Forget a job; return the newest one that has ended. */
  forget(id) {
    this.tiles.get(id)?.remove();
    this.tiles.delete(id);
    this.jobs.delete(id);
    this.tell();
    return this.newest();
  }

  newest() {
    return [...this.jobs.values()].find((job) => job.state === "done" && job.pictures.length);
  }
}
