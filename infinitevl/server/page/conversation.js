// The questions of the chosen stream, their answers as they grow, and the box to ask in.

import { byId, make, setIcon } from "./dom.js";
import { clock } from "./format.js";

const FOR_BUILTIN = ["What do you see now?", "What was on the first sign?", "Which text was on the latest sign?", "What is the sign on the red picture?"];
const FOR_OTHERS = ["What do you see now?", "What has happened so far?", "What changed just now?"];

export class Conversation {
  #stream = null;
  #rows = new Map(); // exchange -> its elements
  #redraw = () => this.draw();

  constructor() {
    this.list = byId("history");
    this.form = byId("ask-form");
    this.question = byId("question");
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    this.question.addEventListener("keydown", (event) => { if (event.key === "Escape") this.#growing?.controller.abort(); });
  }

  /** Offers questions that the model can answer. */
  setModel({ builtin }) {
    byId("chips").replaceChildren(...(builtin ? FOR_BUILTIN : FOR_OTHERS).map((text) => make("button", { type: "button", onclick: () => this.#stream?.ask(text) }, text)));
  }

  show(stream) {
    this.#stream?.removeEventListener("exchanges", this.#redraw);
    this.#stream = stream;
    stream?.addEventListener("exchanges", this.#redraw);
    this.#rows.clear();
    this.list.replaceChildren();
    this.question.disabled = byId("ask").disabled = !stream;
    this.draw();
  }

  draw() {
    const exchanges = this.#stream?.exchanges ?? [];
    const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 60;
    for (const exchange of exchanges) this.#drawExchange(exchange);
    byId("chips").classList.toggle("one-row", exchanges.length > 0);
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
    const stop = Boolean(this.#growing);
    setIcon(byId("ask"), stop ? "stop" : "send");
    byId("ask").setAttribute("aria-label", stop ? "Stop the answer" : "Ask");
  }

  get #growing() {
    return this.#stream?.exchanges.findLast((exchange) => exchange.state === "waiting" || exchange.state === "growing");
  }

  #submit() {
    const text = this.question.value.trim();
    if (text) {
      this.#stream.ask(text);
      this.question.value = "";
      this.list.scrollTop = this.list.scrollHeight;
    } else {
      this.#growing?.controller.abort();
    }
  }

  #drawExchange(exchange) {
    let row = this.#rows.get(exchange);
    if (!row) {
      row = this.#newRow(exchange);
      this.#rows.set(exchange, row);
      this.list.append(row.item);
      byId("knows").open = false; // the room is for answers
    }
    if (row.item.dataset.state === "done") return;
    row.time.textContent = clock(exchange.time);
    row.answer.textContent = exchange.answer || (exchange.state === "stopped" ? "Stopped" : "");
    row.item.dataset.state = exchange.state;
    row.error.hidden = row.again.hidden = !exchange.error;
    row.error.textContent = exchange.error ?? "";
    if (exchange.state === "done" || exchange.state === "failed") this.#announce(exchange);
  }

  #newRow(exchange) {
    const time = make("time", { className: "when" });
    const answer = make("p", { className: "answer" });
    const error = make("p", { className: "error" });
    const again = make("button", { type: "button", className: "link", onclick: () => this.#stream.ask(exchange.question) }, "Ask again");
    const item = make("li", {}, make("p", { className: "asked" }, time, make("span", {}, exchange.question)), answer, error, again);
    return { item, time, answer, error, again };
  }

  /** Reads a whole answer to a screen reader; word by word would be noise. */
  #announce(exchange) {
    byId("announcer").textContent = exchange.error ?? `${exchange.question} ${exchange.answer}`;
  }
}
