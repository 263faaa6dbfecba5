// The page: puts form, stage and history together.

import { get, onTokenNeeded, postFile, ServerError } from "./api.js";
import { askForToken, showServer } from "./dialogs.js";
import { button, byId, count, h, newId } from "./dom.js";
import { OptionsForm } from "./form.js";
import { History } from "./history.js";
import { followAll, inputOf, isOver, submit } from "./jobs.js";
import { hasFiles, pictureOf, takeDrops } from "./pictures.js";
import { Stage } from "./stage.js";

const KEY = "sdcpp-form";
const NAMES = {
  txt2img: "Text",
  img2img: "Picture",
  inpaint: "Inpaint",
  edit: "Edit",
  txt2vid: "Video",
  img2vid: "Animate",
  upscale: "Upscale",
};
const USES = {
  img2img: "Change it",
  inpaint: "Paint over it",
  edit: "Edit it",
  img2vid: "Animate it",
  upscale: "Upscale it",
};
const EXAMPLES = {
  embedded: [
    "a red circle on a white background",
    "a blue star in the top left on a yellow background",
    "two small pink hearts on a gray background",
    "a green background with a white moon",
  ],
  "": [
    "a lighthouse in a storm, oil painting",
    "a fox in fresh snow, soft morning light",
    "a bowl of ripe cherries on a blue table",
  ],
};

let modes = {};
let models = [];
let mode = "";
let loras = [];
let noticeTimer;
const mine = new Map(); // jobs that this page asked for and that have not ended: id -> job

/** Say something that the person should know; an error stays until the next one. */
function say(message, kind = "error") {
  const notice = byId("notice");
  clearTimeout(noticeTimer);
  notice.className = kind;
  notice.hidden = !message;
  notice.replaceChildren(
    h("span", {}, message),
    button("×", () => (notice.hidden = true), { "aria-label": "Close the message" }),
  );
  if (kind !== "error") noticeTimer = setTimeout(() => (notice.hidden = true), 8000);
}

const form = new OptionsForm(byId("subject"), byId("options"), say);
const history = new History(byId("history"), (job) => show(job, true), say);
const stage = new Stage(byId("stage"), { again, uses, use, removed, ended }, say);

// --- models and modes ------------------------------------------------------------------------------------------------

const model = () => models.find((each) => each.name === byId("model").value);
const isUpscaler = (each) => each.kind === "upscaler";

/** The modes that a model has; all of its kind while the server does not know yet. */
function modesOf(each) {
  const all = Object.keys(modes).filter((name) => (name === "upscale") === isUpscaler(each));
  return all.filter((name) => each.modes?.includes(name) ?? true);
}

/** Show the models, and keep the one that is chosen. */
function showModels(wanted = byId("model").value) {
  const option = (each) => h("option", { value: each.name }, each.name);
  const drawing = models.filter((each) => !isUpscaler(each)).map(option);
  const upscalers = models.filter(isUpscaler).map(option);
  byId("model").replaceChildren(
    ...drawing,
    ...(upscalers.length ? [h("optgroup", { label: "Upscalers" }, upscalers)] : []),
  );
  byId("model").value = models.some((each) => each.name === wanted) ? wanted : models.find((each) => each.default).name;
  showLoaded();
}

function showLoaded() {
  byId("loaded").textContent = model().loaded.length ? "loaded" : "loads when it is first used";
}

/** Take what the server knows of its models now: which are loaded, and what they can do. */
async function refreshModels() {
  models = await get("/api/models");
  const before = [...byId("modes").querySelectorAll("input")].map((each) => each.value).join();
  showModels();
  if (modesOf(model()).join() !== before) await showModes();
}

/** Show the modes that the model has, and the form of one of them. */
async function showModes(wanted = mode) {
  const names = modesOf(model());
  const chosen = names.includes(wanted) ? wanted : names[0];
  const radios = names.flatMap((name) => {
    const id = newId();
    const input = h("input", { type: "radio", name: "mode", id, value: name, onchange: () => showForm(name) });
    input.checked = name === chosen;
    return [input, h("label", { for: id, title: `${name}: ${modes[name].title}` }, NAMES[name] ?? name)];
  });
  byId("modes").replaceChildren(byId("modes").firstElementChild, ...radios);
  const { name } = model();
  loras = model().loras ? await get(`/api/models/${encodeURIComponent(name)}/loras`) : [];
  showForm(chosen);
}

/** Show the form of a mode. */
function showForm(name) {
  mode = name;
  const upscalers = models.filter(isUpscaler).map((each) => each.name);
  form.show(modes[name].options, model().defaults, { loras, upscalers });
  if (!("preview" in form.kept)) showPreviews();
  const formats = byId("format");
  formats.replaceChildren(
    h("option", { value: "" }, "default"),
    ...modes[name].formats.map((each) => h("option", {}, each)),
  );
  const placeholder = (EXAMPLES[model().name] ?? EXAMPLES[""])[0];
  form.field("prompt")?.input.setAttribute("placeholder", placeholder);
  byId("draw").textContent = name === "upscale" ? "Upscale" : "Draw";
}

/** Have previews shown where nothing else is asked for: they cost little, and say that something happens. */
function showPreviews() {
  const preview = form.field("preview");
  if (preview && !preview.isSet) preview.set("proj");
  form.count();
}

/** Return the fields that say how pictures are written. */
function outputFields() {
  const quality = h("input", {
    type: "number",
    id: "quality",
    min: "0",
    max: "100",
    "aria-describedby": "quality-hint",
  });
  const field = (id, label, input, hint) =>
    h(
      "div",
      { class: "field" },
      h("label", { for: id }, label),
      input,
      h("p", { class: "hint", id: `${id}-hint` }, hint),
    );
  return h(
    "details",
    { class: "panel" },
    h("summary", {}, "Files"),
    h(
      "div",
      { class: "fields" },
      field(
        "format",
        "Format",
        h("select", { id: "format", "aria-describedby": "format-hint" }),
        "of pictures png by default, of videos webp",
      ),
      field("quality", "Quality", quality, "of jpeg, webp and avif (0 to 100)"),
      h(
        "div",
        { class: "field switch" },
        h("input", { type: "checkbox", id: "metadata", checked: true, "aria-describedby": "metadata-hint" }),
        h("label", { for: "metadata" }, "Parameters in files"),
        h("p", { class: "hint", id: "metadata-hint" }, "so that a picture says how it is drawn again"),
      ),
    ),
  );
}

/** Take every option back to its default. */
function reset() {
  form.reset();
  showPreviews();
}

function output() {
  const found = {};
  if (byId("format").value) found.format = byId("format").value;
  if (byId("quality").value) found.compression = Number(byId("quality").value);
  if (!byId("metadata").checked) found.metadata = false;
  return found;
}

// --- drawing ---------------------------------------------------------------------------------------------------------

/** Ask for what the form says. */
async function draw() {
  const button_ = byId("draw");
  say("");
  try {
    const options = await form.values();
    if (options === null) return;
    button_.disabled = true; // a second press while a large picture is sent would ask twice
    const job = await submit({ mode, model: model().name, options, output: output() });
    mine.set(job.id, job);
    history.take(job);
    if (!stage.isBusy) show(job, true);
    tellWaiting();
  } catch (error) {
    if (!(error instanceof ServerError && error.kind === "ArgumentError" && form.pointFor(error.message)))
      say(error.message);
  } finally {
    button_.disabled = false;
  }
}

function tellWaiting() {
  const others = [...mine.keys()].filter((id) => id !== stage.job?.id).length;
  byId("waiting").textContent = others ? `${count(others, "more job")} to come` : "";
}

/** Look at a job; on narrow windows, where it lies below the form, go there. */
function show(job, go) {
  stage.show(job);
  history.mark(job.id);
  tellWaiting();
  if (go && matchMedia("(max-width: 60rem)").matches) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    byId("stage").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  }
}

/** What is looked at has ended: the history has it, and the next one of ours is looked at. */
function ended(job) {
  mine.delete(job.id);
  history.take(job);
  const next = [...mine.values()][0];
  if (next) show(next, false);
  tellWaiting();
  refreshModels().catch(() => {});
}

function removed(job) {
  const next = history.forget(job.id);
  if (next) show(next, false);
  else welcome();
  byId("stage").focus();
}

/** What is here before the first picture: examples, one press each. */
function welcome() {
  const examples = EXAMPLES[model().name] ?? EXAMPLES[""];
  const chips = examples.map((each) =>
    button(
      each,
      () => {
        form.field("prompt")?.set(each);
        draw();
      },
      { class: "chip" },
    ),
  );
  stage.clear(
    h(
      "div",
      { class: "welcome" },
      h("h2", {}, "Draw something"),
      h("p", { class: "muted" }, "Write what you would like to see, or begin with one of these:"),
      h("div", { class: "chips" }, chips),
    ),
  );
}

// --- again -----------------------------------------------------------------------------------------------------------

/** Bring the form to a mode with options, and with the pictures of a job where there is one; say what else is needed. */
async function fill(wanted, options, said, job = null) {
  if (wanted !== mode) {
    const fits = models.find((each) => modesOf(each).includes(wanted));
    if (!fits) return say(`no model here draws in the mode ${wanted}`);
    if (!modesOf(model()).includes(wanted)) byId("model").value = fits.name;
    await showModes(wanted);
  }
  form.fill(options);
  if (job) await bringInputs(job);
  showPreviews();
  const needs = form.fields.filter((field) => field.required && field.missing && field.name !== "prompt");
  const more = needs.length
    ? ` Add ${needs.map((field) => field.name).join(" and ")}: files do not carry what they were drawn from.`
    : "";
  say(`${said}${more}`, "good");
  byId("draw").focus({ preventScroll: true });
}

/** Fetch the pictures that went into a job into the form, those that are there still: a picture before its mask. */
async function bringInputs(job) {
  for (const field of form.fields) {
    const numbers = [job.options[field.name]].flat().filter(Number.isInteger);
    if (!field.bring || !numbers.length) continue;
    try {
      await field.bring(await Promise.all(numbers.map((number) => inputOf(job, number))));
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
    }
  }
}

/** Take a job's parameters into the form, with the seed of one of its pictures. */
function again(job, seed) {
  const options = { ...job.options };
  if (seed !== null) {
    options.seed = seed;
    delete options.batch_count;
  }
  if (models.some((each) => each.name === job.model)) byId("model").value = job.model;
  fill(job.mode, options, "These are its parameters.", job);
}

/** What can be done with a picture, by the model that is chosen or by an upscaler. */
function uses() {
  const names = modesOf(model());
  if (models.some(isUpscaler) && !names.includes("upscale")) names.push("upscale");
  return names.filter((name) => USES[name]).map((name) => ({ name, text: USES[name] }));
}

/** Begin with a picture. */
async function use(file, wanted, said = "The picture to begin with is in the form.") {
  if (wanted === "upscale" && !isUpscaler(model())) byId("model").value = models.find(isUpscaler).name;
  const names = modesOf(model());
  const into = names.includes(wanted) ? wanted : names.find((name) => modes[name].options.properties.image);
  if (!into) return say(`${model().name} begins with no picture`);
  if (into !== mode) await showModes(into);
  const [field] = form.fields.filter((each) => each.take && each.required); // "image", or the references of an edit
  if (!(await field.take([file]))) return;
  say(said, "good");
  field.node.scrollIntoView({ block: "nearest" });
}

/** Read the parameters of a picture, and take them into the form; one without any is a picture to begin with. */
async function bring(file) {
  if (!file) return say("that is no picture");
  let found;
  try {
    found = await postFile("/api/parameters", "picture", file);
  } catch (error) {
    if (!(error instanceof ServerError && error.status === 400)) return say(error.message);
    if (!modesOf(model()).some((name) => modes[name].options.properties.image)) return say(error.message);
    const into = modes[mode].options.properties.image ? mode : "img2img";
    return use(file, into, `${file.name} says nothing of how it was drawn; it is the picture to begin with.`);
  }
  const ignored = Object.entries(found.unmapped).map(([name, value]) => `${name}: ${value}`);
  const said = `The parameters of ${file.name} are in the form.`;
  await fill(
    found.mode in modes ? found.mode : "txt2img",
    found.options,
    ignored.length ? `${said} Without an equal here: ${ignored.join(", ")}.` : said,
  );
}

// --- the start -------------------------------------------------------------------------------------------------------

function listen() {
  addEventListener("pagehide", () => {
    sessionStorage.setItem(KEY, JSON.stringify({ mode, model: model().name, values: form.saved() }));
  });
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      draw();
    }
  });
  byId("model").addEventListener("change", async () => {
    showLoaded();
    await showModes();
    if (!stage.job) welcome();
  });
  byId("server").addEventListener("click", () => showServer(say));
  byId("bring").addEventListener("change", (event) => {
    bring(event.target.files[0]);
    event.target.value = "";
  });
  takeDrops(document.documentElement, (files) => bring(files[0]));
  document.addEventListener("paste", (event) => {
    const picture = pictureOf(event.clipboardData);
    if (picture) bring(picture);
  });
  // A file that misses must not replace the page.
  for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => hasFiles(event) && event.preventDefault());
}

async function start() {
  onTokenNeeded(askForToken);
  byId("output").replaceChildren(outputFields(), button("Reset options", reset, { class: "quiet" }));
  const saved = JSON.parse(sessionStorage.getItem(KEY) ?? "{}");
  [modes, models] = await Promise.all([get("/api/modes"), get("/api/models")]);
  form.restore(saved.values ?? {});
  showModels(saved.model);
  await showModes(saved.mode);
  listen();
  if (matchMedia("(pointer: fine)").matches) form.field("prompt")?.input.focus(); // no keyboard on screen unasked
  performance.mark("usable"); // what follows is what was drawn before
  await history.load();
  const under = [...history.jobs.values()].find((job) => !isOver(job)) ?? history.newest();
  if (under) show(under, false);
  else welcome();
  document.documentElement.dataset.ready = "";
  followAll(
    new AbortController().signal,
    (job) => {
      history.take(job);
      if (isOver(job)) mine.delete(job.id);
      tellWaiting();
    },
    () => history.load(),
  );
}

start().catch((error) => say(error.message));
