// What a picture took: time by phase, and which weights were resident, streamed and hidden behind computing.

import { bytes, count, h, seconds } from "./dom.js";

/** Return a bar of parts, each {name, size, text, kind}, with a legend that says the same in words. */
function bar(label, parts) {
  const total = parts.reduce((sum, part) => sum + part.size, 0);
  const shown = parts.filter((part) => part.size > 0.003 * total);
  const pieces = shown.map((part) => {
    const piece = h("span", { class: `part ${part.kind}`, title: `${part.name} ${part.text}` });
    piece.style.flexGrow = String(part.size / total);
    return piece;
  });
  const legend = shown.map((part) =>
    h("li", {}, h("span", { class: `key ${part.kind}`, "aria-hidden": "true" }), `${part.name} ${part.text}`),
  );
  return h(
    "div",
    { class: "measure" },
    h("h3", {}, label),
    h("div", { class: "bar", "aria-hidden": "true" }, pieces),
    h("ul", { class: "legend" }, legend),
  );
}

/** Return the bytes of weights by how they were there when they were needed. */
function weights(report) {
  const found = { resident: 0, hidden: 0, waited: 0, unknown: 0, copied: 0 };
  const streams = report.transfer?.streams ?? [];
  const streamed = new Set();
  for (const row of streams) {
    if (!row.passes) continue;
    streamed.add(row.module);
    found.resident += row.resident_bytes;
    if (row.hidden === null) found.unknown += row.streamed_bytes;
    else {
      found.hidden += row.streamed_bytes * row.hidden;
      found.waited += row.streamed_bytes * (1 - row.hidden);
    }
  }
  for (const row of report.memory?.modules ?? []) {
    if (streamed.has(row.module.split(".")[0])) continue;
    if (row.runtime_device === row.params_device) found.resident += row.bytes;
    else found.copied += row.bytes;
  }
  return found;
}

function weightsBar(report) {
  const found = weights(report);
  return bar("Weights", [
    { name: "resident", size: found.resident, text: bytes(found.resident), kind: "resident" },
    { name: "streamed, hidden", size: found.hidden, text: bytes(found.hidden), kind: "hidden-part" },
    { name: "streamed, waited for", size: found.waited, text: bytes(found.waited), kind: "waited" },
    { name: "streamed, not measured", size: found.unknown, text: bytes(found.unknown), kind: "streamed" },
    { name: "copied before use", size: found.copied, text: bytes(found.copied), kind: "waited" },
  ]);
}

function timeBar(timings) {
  const { total, load, ...rest } = timings; // loading is the model's, not this picture's
  const phases = Object.entries(rest).filter(([, value]) => typeof value === "number" && value > 0);
  const known = phases.reduce((sum, [, value]) => sum + value, 0);
  const parts = phases.map(([name, size], index) => ({
    name: name.replaceAll("_", " "),
    size,
    text: seconds(size),
    kind: `phase${index % 4}`,
  }));
  if (!parts.length) return "";
  const other = (total ?? known) - known;
  if (other > 0.01 * known) parts.push({ name: "other", size: other, text: seconds(other), kind: "other" });
  return bar(total === undefined ? "Time" : `Time ${seconds(total)}`, parts);
}

const row = (name, ...cells) =>
  h(
    "tr",
    {},
    h("th", { scope: "row" }, name),
    cells.map((each) => h("td", {}, each)),
  );

const heads = (...names) =>
  h(
    "thead",
    {},
    h(
      "tr",
      {},
      names.map((name) => h("th", { scope: "col" }, name)),
    ),
  );

const HOMES = { device: "", host: " streamed", disk: " from disk" };
const MOST_REJECTED = 8;

/** Return what the planner chose, what it did not and why, and how long it said that would take; nothing where it was
 * told where to place the model, or had nothing to choose. */
function choiceView(choice, prediction, scrolled) {
  if (!choice) return "";
  const groups = Object.keys(choice.chosen.places);
  const line = (each, verdict) =>
    row(
      ...groups.map((group) => `${each.places[group].device}${HOMES[each.places[group].home] ?? ""}`),
      each.vae_tile ? String(each.vae_tile) : "-",
      each.seconds === null ? "-" : seconds(each.seconds),
      verdict,
    );
  const rejected = choice.rejected.slice(0, MOST_REJECTED);
  const took = prediction ? sum(prediction.happened) : null;
  const said = prediction ? sum(prediction.predicted) : choice.seconds;
  return h(
    "details",
    { class: "panel" },
    h("summary", {}, `Placed by itself: ${seconds(said)} predicted${took === null ? "" : `, ${seconds(took)} taken`}`),
    h("p", {}, `${count(choice.considered, "way")} to place the model compared, for ${choice.picture}`),
    scrolled(
      h(
        "table",
        {},
        heads(...groups, "VAE tiles", "seconds", "verdict"),
        h("tbody", {}, line(choice.chosen, "chosen"), ...rejected.map((each) => line(each, each.reason))),
      ),
    ),
  );
}

const sum = (numbers) => Object.values(numbers).reduce((all, each) => all + each, 0);

/** Return the tables behind the bars: a line for each module, and one for each network that was streamed. */
function tables(report) {
  const modules = report.memory?.modules ?? [];
  const memory = h(
    "table",
    {},
    heads("module", "runs on", "weights on", "pinned", "size"),
    h(
      "tbody",
      {},
      modules.map((each) =>
        row(each.module, each.runtime_device, each.params_device, each.pinned ? "yes" : "no", bytes(each.bytes)),
      ),
    ),
  );
  const streams = (report.transfer?.streams ?? []).filter((each) => each.passes);
  if (!streams.length) return [memory];
  const streaming = h(
    "table",
    {},
    heads("network", "mode", "resident", "streamed", "hidden", "advice"),
    h(
      "tbody",
      {},
      streams.map((each) =>
        row(
          `${each.module} ${each.runner}`,
          each.mode,
          bytes(each.resident_bytes),
          bytes(each.streamed_bytes),
          each.hidden === null ? "-" : `${Math.round(100 * each.hidden)} %`,
          each.advice,
        ),
      ),
    ),
  );
  return [memory, streaming];
}

/** Return what there is to see of a job's report. */
export function reportView(report) {
  const scrolled = (table) =>
    h("div", { class: "scrolled", tabindex: "0", role: "region", "aria-label": "Table" }, table);
  return [
    h("div", { class: "measures" }, timeBar(report.timings), weightsBar(report)),
    choiceView(report.plan?.choice, report.prediction, scrolled),
    h(
      "details",
      { class: "panel" },
      h("summary", {}, "Where weights lay, and what was copied"),
      tables(report).map(scrolled),
    ),
  ].filter((each) => each !== "");
}
