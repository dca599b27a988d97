// One stream as a picture: what it watches, what it just said, what went wrong.

import { icon, make } from "./dom.js";
import { clock } from "./format.js";

export class Tile {
  constructor(stream, { focus, remove, chooseSource }) {
    this.stream = stream;
    this.media = make("div", { className: "media" });
    this.time = make("span", { className: "time" });
    this.label = make("span", { className: "name" });
    this.choose = make("button", { type: "button", className: "focus", onclick: focus });
    this.close = make("button", { type: "button", className: "close", onclick: remove }, icon("close"));
    this.said = make("p", { className: "said" });
    this.notice = make("p", { className: "notice", role: "status" });
    this.start = make("button", { type: "button", className: "start", onclick: chooseSource }, "Choose a source");
    this.unread = make("span", { className: "count", hidden: true });
    const head = make("p", { className: "head" }, make("i", { className: "dot" }), this.label, this.time, this.unread);
    this.element = make("article", { className: "tile" }, this.media, this.choose, head, this.close, make("div", { className: "foot" }, this.notice, this.start, this.said));
    for (const event of ["change", "numbers", "exchanges"]) stream.addEventListener(event, () => this.draw());
    stream.watching.addEventListener("change", () => this.draw());
    this.draw();
  }

  /** Puts what the stream's state says onto the tile. */
  draw() {
    const { stream, element } = this;
    this.#showMedia();
    this.label.textContent = stream.name;
    this.time.textContent = clock(stream.time);
    const { unread } = stream.watching;
    this.unread.hidden = !unread;
    this.unread.textContent = unread;
    this.choose.setAttribute("aria-label", `Choose ${stream.name}${unread ? `, ${unread} new` : ""}`);
    this.close.setAttribute("aria-label", `Remove ${stream.name}`);
    this.start.hidden = stream.source !== null;
    this.notice.hidden = !stream.notice;
    const text = stream.notice?.text ?? "";
    if (this.notice.textContent !== text) this.notice.textContent = text;
    const last = stream.exchanges.findLast((exchange) => exchange.answer);
    this.said.hidden = !last;
    this.said.textContent = last?.answer ?? "";
    element.dataset.state = stream.notice?.kind === "error" ? "error" : !stream.source ? "waiting" : stream.paused ? "paused" : "live";
  }

  setFocus(focused) {
    this.choose.setAttribute("aria-pressed", String(focused));
    this.element.classList.toggle("focused", focused);
  }

  #showMedia() {
    const { source, still } = this.stream;
    const key = source?.element ?? still ?? source;
    if (key === this.shown) return;
    this.shown = key;
    const before = this.picture;
    this.picture = !source?.element && still ? URL.createObjectURL(still) : null;
    if (before) setTimeout(() => URL.revokeObjectURL(before), 1000); // until the next one is drawn
    const image = this.picture && this.media.querySelector("img");
    if (image && image.src === before) return void (image.src = this.picture); // without a flicker
    const shown = source?.element ?? (this.picture && make("img", { src: this.picture, alt: "The last picture" }));
    const none = this.stream.numbers.frames ? "Its memory was kept, its pictures were not." : "No picture yet";
    const words = source ? `The server follows ${source.printable}` : none;
    this.media.replaceChildren(shown ?? make("p", { className: "words" }, words));
    if (source?.element?.play) source.element.play().catch(() => {}); // moving a video in the page stops it
  }
}
