// The numbers of the chosen stream and their chart: tokens rise, memory stays flat.

import { byId, makeSvg } from "./dom.js";
import { bytes, count } from "./format.js";

const [WIDTH, HEIGHT, MARGIN] = [600, 96, 4];
const FLAT = 0.42; // the height at which a memory that never grew is drawn

export class Numbers {
  #stream = null;
  #redraw = () => this.draw();

  constructor() {
    this.area = makeSvg("path", { class: "area" });
    this.tokens = makeSvg("path", { class: "tokens" });
    this.memory = makeSvg("path", { class: "memory" });
    byId("chart").append(this.area, this.tokens, this.memory);
  }

  show(stream) {
    this.#stream?.removeEventListener("numbers", this.#redraw);
    this.#stream = stream;
    stream?.addEventListener("numbers", this.#redraw);
    byId("numbers").hidden = !stream;
    if (stream) this.draw();
  }

  draw() {
    const { numbers, points } = this.#stream;
    byId("stat-rate").textContent = numbers.framesPerSecond.toFixed(1);
    byId("stat-frames").textContent = count(numbers.frames);
    byId("stat-dropped").textContent = numbers.dropped ? `${count(numbers.dropped)} dropped` : "";
    byId("stat-tokens").textContent = count(numbers.tokens);
    byId("stat-memory").textContent = bytes(numbers.state_bytes);
    this.#drawChart(points);
    const text = sentence(numbers, points);
    byId("chart-text").textContent = text;
    byId("chart").setAttribute("aria-label", text);
  }

  #drawChart(points) {
    const mostTokens = Math.max(1, ...points.map((point) => point.tokens));
    const first = points[0]?.state_bytes || 1;
    const tokens = line(points, (point) => point.tokens / mostTokens);
    this.tokens.setAttribute("d", tokens);
    this.area.setAttribute("d", tokens && `${tokens}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z`);
    this.memory.setAttribute("d", line(points, (point) => Math.min(1, (FLAT * point.state_bytes) / first)));
  }
}

/** A path through heights between 0 and 1, from the first point in time to the last. */
function line(points, height) {
  if (points.length < 2) return "";
  const [begin, end] = [points[0].at, points.at(-1).at];
  const place = (point) => `${(((point.at - begin) / (end - begin || 1)) * WIDTH).toFixed(1)} ${(HEIGHT - MARGIN - height(point) * (HEIGHT - 2 * MARGIN)).toFixed(1)}`;
  return `M${points.map(place).join("L")}`;
}

function sentence(numbers, points) {
  const sizes = points.map((point) => point.state_bytes).filter(Boolean);
  if (sizes.length < 2) return "Tokens will rise, memory will stay as it is.";
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
  const memory = least === most ? `memory is still ${bytes(most)}` : `memory went from ${bytes(least)} to ${bytes(most)}`;
  return `${count(numbers.tokens)} tokens seen; ${memory}.`;
}
