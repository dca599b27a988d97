// One stream of the server: sends it frames, asks it, keeps its numbers and its questions.

import { ApiError, serverEvents } from "./api.js";
import { wait } from "./waiting.js";
import { Watching } from "./watching.js";

const LONGEST_WAIT = 30; // seconds between two tries while the server is away
const BLINK = 100; // milliseconds between two looks at whether a frame is due
const KEPT_POINTS = 240; // of the chart; when there are more, every second one goes
const MAX_ANSWER = 256; // tokens

const NOTHING = { frames: 0, dropped: 0, tokens: 0, seconds: 0, state_bytes: 0, framesPerSecond: 0 };

/** Events: "change" (state or notice), "numbers", "exchanges". */
export class Stream extends EventTarget {
  source = null;
  rate = 2; // frames a second
  paused = false;
  isLost = false;
  missed = 0; // looks at the server's list without it, one after another
  notice = null; // what to tell at the picture: { text, kind: "info" | "error" }
  numbers = { ...NOTHING };
  points = []; // { at: time in the stream, tokens, state_bytes }, for the chart
  exchanges = []; // { time, question, answer, state, error, isWhole, controller }
  still = null; // a picture to show where there is no source, for example of a fork
  lastFrame = null;
  #api;
  #skipped = 0; // frames that were due while one was on its way
  #recent = []; // [milliseconds, frames] of the last seconds
  #sending = null; // aborts the loop that sends frames
  #lastTime = null; // of the newest frame
  #shownFrames = 0; // seen by the server when it was last asked for its newest picture
  #base = 0; // the stream's time when its source began

  constructor(api, id, name) {
    super();
    Object.assign(this, { id, name });
    this.#api = api;
    this.watching = new Watching(api, this);
  }

  get path() {
    return `v1/streams/${encodeURIComponent(this.id)}`;
  }

  /** The time in the stream, in seconds. */
  get time() {
    return this.source?.element ? this.#base + this.source.time : this.numbers.seconds;
  }

  /** Shows the source to this stream from now on. The stream's time goes on where it was. */
  watch(source) {
    this.unwatch();
    this.source = source;
    this.name = source.name;
    this.paused = false;
    this.#base = this.#lastTime === null ? 0 : this.#lastTime + 1 / this.rate;
    this.tell(null);
    source.onend = (why) => { this.unwatch(); this.tell(why); };
    if (source.element) this.#send();
  }

  unwatch() {
    this.#sending?.abort();
    if (!this.source) return;
    this.still = this.lastFrame ?? this.still;
    this.source.stop();
    this.source = null;
    this.#changed("change");
  }

  pause(paused) {
    this.paused = paused;
    if (paused) this.source?.pause();
    else this.source?.resume();
    this.#changed("change");
  }

  tell(text, kind = "info") {
    if (text === (this.notice?.text ?? null)) return;
    this.notice = text === null ? null : { text, kind };
    this.#changed("change");
  }

  /** Sends the newest picture at the chosen rate, one at a time, until the source is taken away. */
  async #send() {
    const controller = (this.#sending = new AbortController());
    const { signal } = controller;
    let failures = 0;
    while (!signal.aborted) {
      const begun = performance.now();
      try {
        const sent = !this.paused && (await this.#sendOne(signal));
        failures = 0;
        if (!sent) {
          await wait(BLINK, signal);
          continue;
        }
      } catch (error) {
        if (signal.aborted) return;
        failures += 1;
        await this.#recover(error, failures, signal);
        continue;
      }
      this.#skipped += Math.max(0, Math.floor(((performance.now() - begun) * this.rate) / 1000) - 1);
      await this.#untilDue(begun, signal);
    }
  }

  /** The rate may change meanwhile. */
  async #untilDue(begun, signal) {
    const left = () => begun + 1000 / this.rate - performance.now();
    while (left() > 0 && !signal.aborted) await wait(Math.min(left(), BLINK), signal);
  }

  /** Whether there was a picture. The server's answer comes when it has read the frame. */
  async #sendOne(signal) {
    const { source } = this;
    const seconds = this.time;
    const frame = await source.grab();
    if (!frame || signal.aborted) return false;
    this.lastFrame = frame;
    this.#lastTime = seconds;
    const response = await this.#api.call("POST", `${this.path}/frames?time=${seconds.toFixed(3)}&wait=true`, { body: frame, headers: { "content-type": "image/jpeg" }, signal });
    await response.json(); // until then it is under way
    if (this.source !== source) return true;
    this.tell(null);
    source.sent();
    return true;
  }

  async #recover(error, failures, signal) {
    if (error.status === 404) return this.lose();
    if (error.status === 401) {
      this.pause(true);
      this.tell("This server asks for a key. Choose Enter the key above, then Resume.", "error");
    } else if (error.passes) {
      const seconds = error.retryAfter ?? Math.min(LONGEST_WAIT, 2 ** (failures - 1));
      const why = error.status === 429 ? "The server is busy" : error.status ? error.message : "The server does not answer";
      this.tell(`${why.replace(/[.]$/, "")}. Trying again in ${Math.ceil(seconds)} s.`, error.status === 429 ? "info" : "error");
      await wait(seconds * 1000, signal);
    } else {
      this.tell(error.message, "error");
      await wait(Math.max(1000, 1000 / this.rate), signal);
    }
  }

  /** The server no longer has it, for example after a restart without --state-dir. */
  lose() {
    this.unwatch();
    this.isLost = true;
    this.tell("The server no longer has this stream. Choose a source to begin anew.", "error");
  }

  /** Begins anew, as another stream of the server. */
  renew(id) {
    Object.assign(this, { id, isLost: false, missed: 0, points: [] });
    this.numbers = { ...NOTHING };
    this.#recent = [];
    this.#skipped = this.#shownFrames = 0;
    this.#lastTime = null;
    this.watching.clear();
  }

  /** Takes the server's numbers of this stream. */
  measure({ frames, dropped, tokens, state_bytes, time, source_status, source_error }) {
    if (source_status === "failed") this.tell(`${this.name} cannot be followed: ${source_error}`, "error");
    if (source_status === "ended") this.tell("The source has ended. What it showed is kept: ask, or save it.");
    if (frames && !(time < this.#lastTime)) this.#lastTime = time;
    if (this.source?.element) this.#shownFrames = frames;
    else if (frames !== this.#shownFrames && !document.hidden) this.#look(frames);
    this.#measureRate(frames);
    this.numbers = { ...this.numbers, frames, tokens, state_bytes, seconds: time ?? 0, dropped: dropped + this.#skipped };
    this.points = this.points.filter((point) => !(point.at > time)); // a server that was killed goes on from its last save
    const last = this.points.at(-1);
    if (last?.tokens !== tokens || last?.state_bytes !== state_bytes) this.points.push({ at: time ?? 0, tokens, state_bytes });
    if (this.points.length > KEPT_POINTS) this.points = this.points.filter((_, index) => index % 2 === 0);
    this.#changed("numbers");
  }

  /** Reads the newest picture that the server has, where this page has none of its own. */
  async #look(frames) {
    const { id } = this;
    this.#shownFrames = frames;
    try {
      const response = await this.#api.call("GET", `${this.path}/frame`);
      const picture = await response.blob();
      if (id !== this.id || this.source?.element) return;
      this.still = this.lastFrame = picture;
      this.#changed("change");
    } catch (error) {
      if (error.status !== 404) this.#shownFrames = null; // 404: it has none; otherwise try again
    }
  }

  #measureRate(newFrames) {
    const now = performance.now();
    this.#recent = [...this.#recent.filter(([then]) => now - then < 6000), [now, newFrames]];
    const [then, frames] = this.#recent[0];
    this.numbers.framesPerSecond = now > then ? Math.max(0, ((newFrames - frames) * 1000) / (now - then)) : 0;
  }

  /** Asks; the answer grows in the exchange that is returned. */
  ask(question) {
    const exchange = { time: this.time, question, answer: "", state: "waiting", error: null, controller: new AbortController() };
    this.exchanges.push(exchange);
    this.#changed("exchanges");
    this.#answer(exchange);
    return exchange;
  }

  async #answer(exchange) {
    const { signal } = exchange.controller;
    const body = JSON.stringify({ question: exchange.question, max_tokens: MAX_ANSWER, stream: true });
    try {
      const response = await this.#api.call("POST", `${this.path}/ask`, { body, headers: { "content-type": "application/json" }, signal, patience: 0 });
      for await (const event of serverEvents(response)) this.#grow(exchange, event);
      if (!exchange.isWhole) throw new TypeError("the answer ended early");
      exchange.state = "done";
    } catch (error) {
      exchange.state = signal.aborted ? "stopped" : "failed";
      if (!signal.aborted) exchange.error = whyNoAnswer(error);
    }
    this.#changed("exchanges");
  }

  #grow(exchange, event) {
    if (event.error) throw new ApiError(500, event.error.message);
    exchange.answer += event.delta ?? "";
    exchange.time = event.time ?? exchange.time;
    exchange.isWhole = Boolean(event.finish_reason);
    exchange.state = "growing";
    this.#changed("exchanges");
  }

  #changed(what) {
    this.dispatchEvent(new Event(what));
  }
}

function whyNoAnswer(error) {
  if (error instanceof TypeError) return "The connection broke while the answer was on its way.";
  if (error.status !== 429) return error.message;
  const when = error.retryAfter ? ` in ${Math.ceil(error.retryAfter)} s` : " in a moment";
  return `The server is busy. Ask again${when}.`;
}
