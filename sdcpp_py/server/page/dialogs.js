// Questions and looks at the server that lie over the page.

import { get, post } from "./api.js";
import { button, bytes, h, newId } from "./dom.js";

/** Return a dialog that removes itself when it is closed. */
function dialogOf(title, ...content) {
  const dialog = h("dialog", { class: "small", "aria-label": title }, h("h2", {}, title), content);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  return dialog;
}

/** Ask for the token of the server, and return it. */
export function askForToken(wasWrong) {
  return new Promise((resolve) => {
    const id = newId();
    const input = h("input", {
      type: "password",
      id,
      required: true,
      autocomplete: "current-password",
      "aria-describedby": `${id}h`,
    });
    const hint = wasWrong
      ? "The server does not know this token. Try another one."
      : "This server asks for a token. It is kept until this tab is closed.";
    const form = h(
      "form",
      { method: "dialog" },
      h(
        "div",
        { class: "field wide" },
        h("label", { for: id }, "Token"),
        input,
        h("p", { class: wasWrong ? "hint error" : "hint", id: `${id}h` }, hint),
      ),
      h("button", { class: "primary" }, "Go on"),
    );
    const dialog = dialogOf("Token", form);
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // there is nothing to see without it
    dialog.addEventListener("close", () => resolve(input.value.trim()));
    dialog.showModal();
  });
}

const cells = (...values) => values.map((each) => h("td", {}, each));
const table = (names, rows) =>
  h(
    "table",
    {},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        names.map((name) => h("th", { scope: "col" }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) => h("tr", {}, row)),
    ),
  );

/** Show the models, workers and devices of the server. */
export async function showServer(say) {
  const body = h("div", {});
  const close = button("Close", () => dialog.close(), { class: "primary" });
  const dialog = dialogOf("Server", body, close);
  async function fill() {
    try {
      const [models, workers, devices] = await Promise.all(
        ["models", "workers", "devices"].map((each) => get(`/api/${each}`)),
      );
      const held = Object.assign({}, ...workers.map((each) => each.loaded));
      body.replaceChildren(
        h("h3", {}, "Models"),
        table(
          ["name", "kind", "weights", ""],
          models.map((each) =>
            cells(
              each.name,
              each.kind,
              each.loaded.length ? bytes(held[each.name] ?? 0) : "not loaded",
              each.loaded.length
                ? button("Unload", () => unload(each.name), { "aria-label": `Unload ${each.name}` })
                : "",
            ),
          ),
        ),
        h("h3", {}, "Workers"),
        table(
          ["name", "state", "memory", "restarts"],
          workers.map((each) =>
            cells(
              each.name,
              each.job ? "drawing" : each.ready ? "ready" : "starting",
              bytes(each.resident),
              String(each.restarts),
            ),
          ),
        ),
        h("h3", {}, "Devices"),
        table(
          ["name", "what it is", "free", "of"],
          devices.map((each) => cells(each.name, each.description, bytes(each.memory_free), bytes(each.memory_total))),
        ),
      );
    } catch (error) {
      say(error.message);
      dialog.close();
    }
  }
  async function unload(name) {
    await post(`/api/models/${encodeURIComponent(name)}/unload`).catch((error) => say(error.message));
    await new Promise((resolve) => setTimeout(resolve, 300)); // until the worker has said what it holds
    await fill();
    close.focus();
  }
  await fill();
  dialog.showModal();
}
