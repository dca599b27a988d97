// Waiting that stays exact while the page is not in front.

const worker = new Worker(new URL("timer.js", import.meta.url));
const waiting = new Map(); // id -> resolve
let last = 0;

worker.onmessage = ({ data: id }) => {
  waiting.get(id)?.();
  waiting.delete(id);
};

/** Waits, or returns earlier where the signal aborts. */
export function wait(milliseconds, signal) {
  if (signal?.aborted || milliseconds <= 0) return Promise.resolve();
  return new Promise((resolve) => {
    const id = (last += 1);
    waiting.set(id, resolve);
    worker.postMessage({ id, milliseconds });
    signal?.addEventListener("abort", resolve, { once: true });
  });
}
