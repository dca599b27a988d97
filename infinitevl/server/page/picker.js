// Chooses what a stream watches. Without a stream it is part of the page; otherwise it is a dialog.

import { ApiError } from "./api.js";
import { byId, make } from "./dom.js";
import { clock, count } from "./format.js";
import { openSource, SourceError } from "./sources.js";

export class Picker {
  #choose = null; // what to do with the chosen source

  /** load(file) takes a saved stream; open(id) shows a stream that the server already has. */
  constructor({ load, open }) {
    this.dialog = byId("picker");
    this.error = byId("picker-error");
    for (const button of this.dialog.querySelectorAll("[data-source]")) button.addEventListener("click", () => this.#pick(button.dataset.source));
    this.#whenChosen("file-input", (file) => this.#take(() => openSource("file", file)));
    this.#whenChosen("state-input", (file) => this.#try(() => load(file)));
    byId("load").addEventListener("click", () => byId("state-input").click());
    byId("address-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take(() => openSource("address", byId("address").value.trim()));
    });
    byId("open-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#try(() => open(byId("open-stream").value));
    });
    if (!navigator.mediaDevices?.getDisplayMedia) this.dialog.querySelector("[data-source=screen]").hidden = true;
  }

  /** Offers the sources. `inPage`: there is no stream yet; `forStream`: the stream that gets the source, if it exists. */
  show({ inPage = false, forStream = null, others = [], choose }) {
    this.#choose = choose;
    this.error.textContent = "";
    byId("picker-title").textContent = inPage ? "Show it something" : forStream ? `What should ${forStream.name} watch now?` : "Add a stream";
    byId("picker-lead").hidden = Boolean(forStream) || !inPage;
    byId("picker-close").hidden = inPage;
    byId("address-form").hidden = Boolean(forStream); // the server follows an address from a stream's beginning
    byId("load").hidden = Boolean(forStream);
    this.offer(forStream ? [] : others);
    this.hide();
    if (inPage) this.dialog.open = true; // show() would take the focus
    else this.dialog.showModal();
  }

  /** Streams that the server has and this page does not show. */
  offer(others) {
    byId("open-form").hidden = !others.length;
    const ids = others.map((one) => one.id).join();
    if (ids === this.offered) return; // what is chosen stays chosen
    this.offered = ids;
    const words = (one) => `${one.name ?? one.id.slice(-6)}: ${clock(one.time)}, ${count(one.frames)} frames`;
    byId("open-stream").replaceChildren(...others.map((one) => make("option", { value: one.id }, words(one))));
  }

  hide() {
    if (this.dialog.open) this.dialog.close();
  }

  #pick(kind) {
    if (kind === "file") byId("file-input").click();
    else this.#take(() => openSource(kind));
  }

  #take(open) {
    return this.#try(async () => {
      const source = await open();
      try {
        await this.#choose(source);
      } catch (error) {
        source.stop();
        throw error;
      }
    });
  }

  /** Does it and closes, or tells here what went wrong. */
  async #try(act) {
    this.error.textContent = "";
    this.dialog.classList.add("busy");
    try {
      await act();
      this.dialog.querySelectorAll("form.line").forEach((form) => form.reset());
      if (this.dialog.matches(":modal")) this.hide();
    } catch (error) {
      if (!(error instanceof ApiError || error instanceof SourceError)) throw error;
      this.error.textContent = error.message;
    } finally {
      this.dialog.classList.remove("busy");
    }
  }

  #whenChosen(id, act) {
    const input = byId(id);
    input.addEventListener("change", () => {
      const [file] = input.files;
      input.value = "";
      if (file) act(file);
    });
  }
}
