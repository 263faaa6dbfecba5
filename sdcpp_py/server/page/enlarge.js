// One picture as large as the window, and the others of its job by the arrow keys.

import { address } from "./api.js";
import { button, h } from "./dom.js";

/** Show a picture of several; caption(index) says what it is. */
export function enlarge(paths, index, caption) {
  const image = h("img", {});
  const text = h("p", { role: "status" });
  const dialog = h("dialog", { class: "enlarged", "aria-label": "Picture" });
  let at = index;
  async function show(to) {
    at = (to + paths.length) % paths.length;
    text.textContent = paths.length > 1 ? `${at + 1} of ${paths.length} · ${caption(at)}` : caption(at);
    image.alt = text.textContent;
    image.src = await address(paths[at]);
  }
  const row = h("div", { class: "row spread" });
  if (paths.length > 1)
    row.append(
      button("Previous", () => show(at - 1)),
      button("Next", () => show(at + 1)),
    );
  row.append(
    text,
    button("Close", () => dialog.close(), { class: "primary" }),
  );
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) show(at + by);
  });
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.append(image, row);
  document.body.append(dialog);
  show(index);
  dialog.showModal();
}
