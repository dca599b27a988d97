// The watch rules of one stream, and their events as they come.

import { serverEvents } from "./api.js";
import { wait } from "./waiting.js";

const KEPT_EVENTS = 40; // with their pictures
const LONGEST_WAIT = 30; // seconds between two tries to listen

/** Events: "change", and "event" with the newest one in `newest`. */
export class Watching extends EventTarget {
  rules = []; // as the server shows them
  events = []; // newest first
  unread = 0;
  isShown = false; // whether a person sees the events as they come
  #api;
  #stream;
  #isChosen = false;
  #begun = false; // once it is known what was there before
  #counted = 0; // events of all rules
  #turn = 0; // of the newest look at the rules
  #listening = null; // aborts the connection on which events come
  #pictures = new Map(); // event id -> promise of the address of its picture

  constructor(api, stream) {
    super();
    this.#api = api;
    this.#stream = stream;
  }

  get newest() {
    return this.events[0];
  }

  /** Reads the rules, and the events that are not here yet. */
  async refresh() {
    const stream = this.#stream;
    if (stream.isLost) return;
    const turn = (this.#turn += 1);
    const { data } = await this.#api.json("GET", `${stream.path}/rules`);
    if (turn !== this.#turn) return; // a later look, or a new beginning, knows more
    this.rules = data;
    const counted = this.rules.reduce((sum, rule) => sum + rule.events, 0);
    if (!this.#begun || counted !== this.#counted) await this.#catchUp();
    this.#counted = counted;
    this.#begun = true;
    this.#listen();
    this.#changed();
  }

  async add(rule) {
    await this.#api.json("POST", `${this.#stream.path}/rules`, rule);
    await this.refresh();
  }

  async remove(rule) {
    try {
      await this.#api.json("DELETE", `${this.#stream.path}/rules/${rule.id}`);
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    await this.refresh();
  }

  /** Events of the chosen stream come at once; those of the others when refresh() finds that there are some. */
  setChosen(isChosen) {
    this.#isChosen = isChosen;
    this.#listen();
  }

  setShown(isShown) {
    this.isShown = isShown;
    if (isShown && this.unread) {
      this.unread = 0;
      this.#changed();
    }
  }

  /** The address of an event's picture; null where the server does not keep it any more. */
  picture(event) {
    if (!this.#pictures.has(event.id)) this.#pictures.set(event.id, this.#readPicture(event).catch(() => null));
    return this.#pictures.get(event.id);
  }

  /** Forgets all, for example because the stream begins anew. */
  clear() {
    this.#listening?.abort();
    this.#listening = null;
    this.#turn += 1;
    this.events.forEach((event) => this.#forget(event));
    Object.assign(this, { rules: [], events: [], unread: 0 });
    this.#begun = false;
    this.#counted = 0;
    this.#changed();
  }

  async #readPicture(event) {
    const response = await this.#api.call("GET", event.picture.slice(1)); // below the page, wherever that is
    return URL.createObjectURL(await response.blob());
  }

  async #forget(event) {
    const picture = this.#pictures.get(event.id);
    this.#pictures.delete(event.id);
    if (picture) URL.revokeObjectURL(await picture);
  }

  get #after() {
    return this.newest ? `?after=${this.newest.id}` : "";
  }

  async #catchUp() {
    const { data } = await this.#api.json("GET", `${this.#stream.path}/events${this.#after}`);
    for (const event of data.slice(-KEPT_EVENTS)) this.#take(event);
  }

  #take(event) {
    if (this.events.some((one) => one.id === event.id)) return;
    this.events = [event, ...this.events].sort((a, b) => b.created - a.created || b.frame - a.frame);
    this.events.splice(KEPT_EVENTS).forEach((old) => this.#forget(old));
    if (!this.#begun) return; // it was there before this page
    if (!this.isShown) this.unread += 1;
    this.#changed();
    this.dispatchEvent(new Event("event"));
  }

  /** Listens while the stream is chosen and has rules: browsers have few connections to one server. */
  #listen() {
    const wanted = this.#isChosen && this.rules.length > 0 && !this.#stream.isLost;
    if (wanted === Boolean(this.#listening)) return;
    this.#listening?.abort();
    this.#listening = wanted ? new AbortController() : null;
    if (wanted) this.#hear(this.#listening.signal);
  }

  async #hear(signal) {
    for (let failures = 0; !signal.aborted; failures += 1) {
      try {
        const headers = { accept: "text/event-stream" };
        const response = await this.#api.call("GET", `${this.#stream.path}/events${this.#after}`, { headers, signal, patience: 0 });
        failures = 0;
        for await (const event of serverEvents(response)) {
          this.#take(event);
          this.refresh().catch(() => {}); // its rule is on now; the next look tells if not
        }
      } catch (error) {
        if (error.status === 404) return;
        // The server is away or busy, which the page's other calls tell; nothing is missed, it goes on after the newest.
      }
      await wait(1000 * Math.min(LONGEST_WAIT, 2 ** failures), signal);
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
