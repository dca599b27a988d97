// A worker that only waits: browsers slow down the timers of a page that is not in front, but not those of a worker.
onmessage = ({ data: { id, milliseconds } }) => setTimeout(() => postMessage(id), milliseconds);
