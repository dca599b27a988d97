// One stream of the server: sends it frames, asks it, keeps its numbers and its questions.

import { ApiError, serverEvents, wait } from "./api.js";

const LONGEST_WAIT = 30; // seconds between two tries while the server is away
const KEPT_POINTS = 240; // of the chart; when there are more, every second one goes
const MAX_ANSWER = 256; // tokens

/** Events: "change" (state or notice), "numbers", "exchanges", "gone" (the server lost it). */
export class Stream extends EventTarget {
  source = null;
  rate = 2; // frames a second
  paused = false;
  notice = null; // what to tell at the picture: { text, kind: "info" | "error" }
  numbers = { frames: 0, dropped: 0, tokens: 0, seconds: 0, state_bytes: 0, framesPerSecond: 0 };
  points = []; // { frames, tokens, state_bytes } over time, for the chart
  exchanges = []; // { time, question, answer, state, error }
  still = null; // a picture to show where there is no source, for example of a fork
  lastFrame = null;
  #api;
  #skipped = 0; // frames that were due while one was on its way
  #recent = []; // [milliseconds, frames] of the last seconds
  #sending = null; // aborts the loop that sends frames
  #base = 0; // the stream's time when its source began

  constructor(api, id, name) {
    super();
    Object.assign(this, { id, name });
    this.#api = api;
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
    this.#base = this.numbers.frames ? this.numbers.seconds + 1 / this.rate : 0;
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
        if (!this.paused) await this.#sendOne(signal);
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        failures += 1;
        await this.#recover(error, failures, signal);
        continue;
      }
      const period = 1000 / this.rate;
      const late = performance.now() - begun - period;
      if (late > 0) this.#skipped += Math.floor(late / period);
      await wait(-late, signal);
    }
  }

  async #sendOne(signal) {
    const { source } = this;
    const seconds = this.time;
    const frame = await source.grab();
    if (!frame || signal.aborted) return;
    this.lastFrame = frame;
    await this.#api.call("POST", `${this.path}/frames?time=${seconds.toFixed(3)}`, { body: frame, headers: { "content-type": "image/jpeg" }, signal });
    if (this.source === source) this.tell(null); // it may have ended with this frame
  }

  async #recover(error, failures, signal) {
    if (error.status === 404) return this.#lost();
    if (error.status === 401) {
      this.pause(true);
      this.tell("This server asks for a key. Choose Resume to enter it.", "error");
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

  #lost() {
    this.unwatch();
    this.tell("The server no longer has this stream. Load a saved one, or add a new stream.", "error");
    this.#changed("gone");
  }

  /** Takes the server's numbers of this stream. */
  measure(numbers) {
    const now = performance.now();
    this.#recent = [...this.#recent.filter(([then]) => now - then < 6000), [now, numbers.frames]];
    const [then, frames] = this.#recent[0];
    const framesPerSecond = now > then ? Math.max(0, (numbers.frames - frames) / ((now - then) / 1000)) : 0;
    this.numbers = { ...this.numbers, ...numbers, dropped: (numbers.dropped ?? 0) + this.#skipped, framesPerSecond };
    const last = this.points.at(-1);
    if (last && last.tokens === numbers.tokens && last.state_bytes === numbers.state_bytes) return this.#changed("numbers");
    this.points.push({ tokens: numbers.tokens ?? 0, state_bytes: numbers.state_bytes ?? 0 });
    if (this.points.length > KEPT_POINTS) this.points = this.points.filter((_, index) => index % 2 === 0);
    this.#changed("numbers");
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
    exchange.state = "growing";
    this.#changed("exchanges");
  }

  #changed(what) {
    this.dispatchEvent(new Event(what));
  }
}

function whyNoAnswer(error) {
  if (!(error instanceof ApiError)) return "The connection broke while the answer was on its way.";
  if (error.status === 404) return "The server no longer has this stream.";
  if (error.status !== 429) return error.message;
  const when = error.retryAfter ? ` in ${Math.ceil(error.retryAfter)} s` : " in a moment";
  return `The server is busy. Ask again${when}.`;
}
