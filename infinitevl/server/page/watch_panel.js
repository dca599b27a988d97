// The rules of the chosen stream, the form that makes one, and the events with their pictures.

import { byId, icon, make } from "./dom.js";
import { clock } from "./format.js";

const FOR_BUILTIN = { question: "What is on the picture now?", expect: "", placeholder: "K4M", hint: "It tells what is on a picture: wait for a text or a name, such as K4M. It is of no use for yes or no." };
const FOR_OTHERS = { question: "", expect: "yes", placeholder: "yes", hint: "Asked on a copy of the stream, again and again. You are told when the answer begins with what you wait for." };

export class WatchPanel {
  #stream = null;
  #rows = new Map(); // id of a rule or an event -> its elements
  #redraw = () => this.draw();

  constructor() {
    this.rules = byId("rules");
    this.events = byId("events");
    this.error = byId("rule-error");
    byId("rule-form").addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    byId("event-close").addEventListener("click", () => byId("event-dialog").close());
  }

  /** Offers a rule that the model can follow. */
  setModel({ builtin }) {
    const offer = builtin ? FOR_BUILTIN : FOR_OTHERS;
    byId("rule-question").value = byId("rule-question").defaultValue = offer.question;
    byId("rule-expect").value = byId("rule-expect").defaultValue = offer.expect;
    byId("rule-expect").placeholder = offer.placeholder;
    byId("rule-hint").textContent = offer.hint;
  }

  show(stream) {
    this.#stream?.watching.removeEventListener("change", this.#redraw);
    this.#stream = stream;
    stream?.watching.addEventListener("change", this.#redraw);
    this.#rows.clear();
    this.rules.replaceChildren();
    this.events.replaceChildren();
    this.error.textContent = "";
    this.draw();
  }

  draw() {
    const { rules = [], events = [], unread = 0 } = this.#stream?.watching ?? {};
    this.#drop([...rules, ...events]);
    for (const rule of rules) this.#drawRule(rule);
    for (const event of events.toReversed()) this.#drawEvent(event);
    byId("watch-lead").hidden = rules.length + events.length > 0;
    byId("events-none").hidden = !rules.length || events.length > 0;
    byId("unread").hidden = !unread;
    byId("unread-count").textContent = unread;
  }

  #drop(kept) {
    const ids = new Set(kept.map((one) => one.id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      row.item.remove();
      this.#rows.delete(id);
    }
  }

  #drawRule(rule) {
    const row = this.#rows.get(rule.id) ?? this.#newRule(rule);
    row.item.dataset.on = rule.is_on;
    setText(row.lamp, rule.is_on ? "on" : "off");
    setText(row.now, rule.last_answer === null ? "not asked yet" : `now: ${rule.last_answer}`);
    row.now.title = rule.skipped ? `${rule.skipped} times there was no time to ask` : "";
  }

  #newRule(rule) {
    const lamp = make("span", { className: "lamp" });
    const now = make("span", { className: "now" });
    const waits = make("p", { className: "waits" }, make("span", {}, "waits for ", make("b", {}, rule.expect)), make("span", {}, `every ${rule.every} s`), now);
    const close = make("button", { type: "button", className: "quiet round", "aria-label": `Remove the rule: ${rule.question} ${rule.expect}`, onclick: () => this.#try(() => this.#stream.watching.remove(rule)) }, icon("close"));
    const item = make("li", { className: "rule" }, lamp, make("div", {}, make("p", { className: "rule-question" }, rule.question), waits), close);
    this.rules.append(item);
    const row = { item, lamp, now };
    this.#rows.set(rule.id, row);
    return row;
  }

  #drawEvent(event) {
    if (this.#rows.has(event.id)) return;
    const image = make("img", { alt: "", hidden: true });
    const at = clock(event.time);
    const open = make("button", { type: "button", className: "thumb", disabled: true, "aria-label": `Show the picture of ${at}`, onclick: () => this.#enlarge(event, image) }, image);
    const words = make("div", {}, make("p", { className: "asked" }, make("time", { className: "when" }, at), make("span", {}, event.question)), make("p", { className: "answer" }, event.answer));
    const item = make("li", { className: "event" }, open, words);
    this.events.prepend(item);
    this.#rows.set(event.id, { item });
    this.#stream.watching.picture(event).then((address) => {
      if (!address) return;
      image.src = address;
      image.hidden = open.disabled = false;
    });
  }

  #enlarge(event, image) {
    byId("event-title").textContent = event.answer;
    byId("event-text").textContent = `${event.question} Frame ${event.frame}, at ${clock(event.time)}.`;
    byId("event-picture").src = image.src;
    byId("event-dialog").showModal();
  }

  async #submit() {
    const question = byId("rule-question").value.trim();
    const expect = byId("rule-expect").value.trim();
    if (!question || !expect) return;
    const every = byId("rule-every").valueAsNumber;
    if (await this.#try(() => this.#stream.watching.add({ question, expect, every }))) byId("rule-form").reset();
  }

  /** Whether it went well; tells here what did not. */
  async #try(act) {
    this.error.textContent = "";
    byId("rule-add").disabled = true;
    try {
      await act();
      return true;
    } catch (error) {
      this.error.textContent = error.message;
      return false;
    } finally {
      byId("rule-add").disabled = false;
    }
  }
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
