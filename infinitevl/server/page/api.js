// Calls the server. Adds the key, waits for one where it is missing, and turns every failure into an ApiError.

const KEY = "infinitevl-key";
const PATIENCE = 60_000; // milliseconds until a call without an answer counts as lost

/** A call that failed. status 0: the server could not be reached. retryAfter: seconds, where the server named them. */
export class ApiError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** True if the same call may succeed later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Events: "reachable" and "unreachable", "key" (there is a new one) and "keyless" (the person gave none). */
export class Api extends EventTarget {
  #key = sessionStorage.getItem(KEY) || "";
  #keyWanted = null; // the promise of a key while the person is being asked for it
  #declined = false; // the person gave no key; it is not asked for again until enterKey()
  askForKey = async () => null; // set by the page: resolves to a key, or null if none was given

  json = async (method, path, body) => {
    const headers = body === undefined ? {} : { "content-type": "application/json" };
    const response = await this.call(method, path, { body: body && JSON.stringify(body), headers });
    return response.status === 204 ? null : response.json();
  };

  /** The response of a call that succeeded. Throws ApiError; an aborted call throws AbortError. */
  async call(method, path, { body, headers = {}, signal, patience = PATIENCE } = {}) {
    const used = this.#key;
    const response = await this.#fetch(method, path, { body, headers, signal, patience });
    if (response.ok) return response;
    if (response.status !== 401) throw await errorOf(response);
    const key = this.#key !== used ? this.#key : await this.#newKey();
    if (!key) throw new ApiError(401, "This server asks for a key.");
    return this.call(method, path, { body, headers, signal, patience });
  }

  /** Keeps the key for this tab if the server takes it; tells whether it does. */
  async tryKey(key) {
    const before = this.#key;
    this.#key = key;
    const response = await this.#fetch("GET", "v1/models", { headers: {} });
    if (response.status === 401 || response.status === 403) {
      this.#key = before;
      return false;
    }
    sessionStorage.setItem(KEY, key);
    return true;
  }

  /** Asks the person for a key, also after they gave none before. */
  enterKey() {
    this.#declined = false;
    return this.#newKey();
  }

  async #newKey() {
    if (this.#declined) return null;
    this.#keyWanted ??= this.askForKey();
    const key = await this.#keyWanted;
    this.#keyWanted = null;
    this.#declined = !key;
    this.dispatchEvent(new Event(key ? "key" : "keyless"));
    return key;
  }

  async #fetch(method, path, { body, headers, signal, patience = PATIENCE }) {
    const signals = [signal, patience && AbortSignal.timeout(patience)].filter(Boolean);
    const authorization = this.#key ? { authorization: `Bearer ${this.#key}` } : {};
    try {
      const response = await fetch(new URL(path, document.baseURI), {
        method, body, headers: { ...headers, ...authorization }, signal: AbortSignal.any(signals), cache: "no-store",
      });
      this.dispatchEvent(new Event("reachable"));
      return response;
    } catch (error) {
      if (signal?.aborted) throw error;
      this.dispatchEvent(new Event("unreachable"));
      throw new ApiError(0, "The server does not answer. Is it still running?");
    }
  }
}

async function errorOf(response) {
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? (typeof said?.detail === "string" ? said.detail : null);
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  const retryAfter = Number.isFinite(seconds) ? seconds : null;
  return new ApiError(response.status, message || `The server refused this (status ${response.status}).`, retryAfter);
}

/** The objects of a stream of server-sent events, until [DONE] or its end. */
export async function* serverEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const blocks = (rest + (value ?? "") + (done ? "\n\n" : "")).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may be gone already
  }
}
