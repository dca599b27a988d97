// Starts the page: keeps the streams, which of them is chosen, and what the buttons do.

import { Api } from "./api.js";
import { Conversation } from "./conversation.js";
import { byId, setIcon } from "./dom.js";
import { count, pace } from "./format.js";
import { askForKey } from "./key.js";
import { Numbers } from "./numbers.js";
import { Picker } from "./picker.js";
import { openSource } from "./sources.js";
import { Stream } from "./stream.js";
import { Tabs } from "./tabs.js";
import { Tile } from "./tile.js";
import { wait } from "./waiting.js";
import { WatchPanel } from "./watch_panel.js";

const RATES = [0.2, 0.5, 1, 2, 3, 5, 10]; // frames a second
const POLL = 1000; // milliseconds between two looks at the numbers
const OPENED = "infinitevl-streams"; // the streams of this tab, so that a reload keeps them

const api = new Api();
const tiles = new Map(); // stream -> tile
const conversation = new Conversation();
const watchPanel = new WatchPanel();
const tabs = new Tabs(byId("tabs"), () => showEvents());
const numbers = new Numbers();
const picker = new Picker({ load, open });
let chosen = null;
let listed = []; // the server's streams as it last told

// --- streams -------------------------------------------------------------------------------------------------------

/** Makes a stream on the server; an address is followed by the server itself. */
async function create(source) {
  const { id } = await api.json("POST", "v1/streams", { name: source?.name.slice(0, 200), source: source?.address });
  return new Stream(api, id, source?.name ?? "Stream");
}

async function addWithSource(source) {
  const stream = await create(source);
  stream.watch(source);
  add(stream);
  if (matchMedia("(hover: hover)").matches) byId("question").focus(); // on a phone it would open the keyboard
}

function add(stream) {
  const tile = new Tile(stream, { focus: () => choose(stream), remove: () => askToRemove(stream), chooseSource: () => chooseSource(stream) });
  tiles.set(stream, tile);
  byId("tiles").append(tile.element);
  stream.addEventListener("change", () => stream === chosen && drawControls());
  stream.watching.addEventListener("event", () => announce(stream));
  choose(stream);
  remember();
  scrollTo(0, 0); // on a phone the form that added it stood below
}

async function askToRemove(stream) {
  if (!stream.numbers.frames || (await confirmed(stream))) await remove(stream);
}

function confirmed(stream) {
  const dialog = byId("remove-dialog");
  byId("remove-text").textContent = `The server forgets ${stream.name} and its ${count(stream.numbers.frames)} frames. Save it first to keep them.`;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "remove"), { once: true }));
}

async function remove(stream) {
  stream.unwatch();
  stream.watching.clear();
  stream.exchanges.forEach((exchange) => exchange.controller.abort());
  try {
    await api.call("DELETE", stream.path);
  } catch (error) {
    if (error.status !== 404) return stream.tell(`It is still on the server: ${error.message}`, "error");
  }
  tiles.get(stream).element.remove();
  tiles.delete(stream);
  remember();
  choose([...tiles.keys()].at(-1) ?? null);
}

function choose(stream) {
  chosen = stream;
  for (const [other, tile] of tiles) {
    tile.setFocus(other === stream);
    other.watching.setChosen(other === stream);
  }
  byId("tiles").dataset.count = Math.min(tiles.size, 5);
  document.body.classList.toggle("empty", !stream);
  conversation.show(stream);
  watchPanel.show(stream);
  showEvents();
  stream?.watching.refresh().catch(() => {}); // poll() goes on trying
  numbers.show(stream);
  drawControls();
  if (!stream) picker.show({ inPage: true, others: others(), choose: addWithSource });
  else if (!byId("picker").matches(":modal")) picker.hide();
}

/** Tells each stream whether a person sees its events now. */
function showEvents() {
  for (const stream of tiles.keys()) stream.watching.setShown(stream === chosen && tabs.shown === "watch" && !document.hidden);
}

function announce(stream) {
  const { question, answer } = stream.watching.newest;
  byId("announcer").textContent = `Event of ${stream.name}: ${question} ${answer}`;
}

const others = () => listed.filter((one) => ![...tiles.keys()].some((stream) => stream.id === one.id)).slice(0, 50);

function chooseSource(stream) {
  picker.show({
    forStream: stream,
    choose: async (source) => {
      if (stream.isLost) stream.renew((await create(source)).id);
      stream.watch(source);
      choose(stream);
      remember();
    },
  });
}

/** Shows a stream that the server already has. */
async function open(id) {
  const found = await api.json("GET", `v1/streams/${encodeURIComponent(id)}`);
  const stream = new Stream(api, id, found.name ?? found.source ?? `Stream ${id.slice(-6)}`);
  if (found.source) stream.source = await openSource("address", found.source);
  stream.measure(found);
  stream.tell(found.source ? null : "It waits where it was. Ask, or choose a source to go on.");
  add(stream);
}

function remember() {
  sessionStorage.setItem(OPENED, JSON.stringify([...tiles.keys()].map((stream) => stream.id)));
}

async function reopen() {
  for (const id of JSON.parse(sessionStorage.getItem(OPENED) ?? "[]")) {
    await open(id).catch((error) => { if (error.status !== 404) throw error; });
  }
}

// --- fork, save, load ------------------------------------------------------------------------------------------------

async function fork() {
  const parent = chosen;
  const { id } = await api.json("POST", `${parent.path}/fork`);
  const stream = new Stream(api, id, `Fork of ${parent.name}`);
  stream.still = parent.lastFrame ?? parent.still;
  stream.measure(await api.json("GET", stream.path));
  stream.tell("A copy as it was just now. Ask, or choose a source to go on.");
  add(stream);
}

async function save() {
  const stream = chosen;
  const response = await api.call("GET", `${stream.path}/state`, { patience: 0 });
  const address = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  Object.assign(link, { href: address, download: `stream-${stream.id.slice(-6)}.safetensors` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

async function load(file) {
  const stream = await create(null);
  try {
    await api.call("PUT", `${stream.path}/state`, { body: file, headers: { "content-type": "application/octet-stream" }, patience: 0 });
    stream.measure(await api.json("GET", stream.path));
  } catch (error) {
    await api.call("DELETE", stream.path).catch(() => {}); // the reason for the failed load matters more
    throw error;
  }
  stream.name = file.name.replace(/\.safetensors$/, "");
  stream.tell("It waits where it was saved. Ask, or choose a source to go on.");
  add(stream);
}

// --- controls --------------------------------------------------------------------------------------------------------

function drawControls() {
  byId("controls").hidden = !chosen;
  if (!chosen) return;
  const { source, paused, rate } = chosen;
  byId("pause").disabled = !source?.element;
  byId("pause").querySelector("span").textContent = paused ? "Resume" : "Pause";
  setIcon(byId("pause"), paused ? "play" : "pause");
  byId("source").disabled = Boolean(source && !source.element);
  byId("rate").disabled = Boolean(source && !source.element);
  byId("rate").value = RATES.indexOf(rate);
  byId("rate").setAttribute("aria-valuetext", pace(rate));
  byId("rate-text").textContent = pace(rate);
}

/** A button that works on the chosen stream and tells at its picture what went wrong. */
function button(id, act) {
  byId(id).addEventListener("click", async () => {
    const stream = chosen;
    byId(id).classList.add("busy");
    try {
      await act();
    } catch (error) {
      stream.tell(error.message, "error");
    } finally {
      byId(id).classList.remove("busy");
    }
  });
}

button("pause", () => chosen.pause(!chosen.paused));
button("source", () => chooseSource(chosen));
button("fork", fork);
button("save", save);
button("add", () => picker.show({ others: others(), choose: addWithSource }));
byId("rate").addEventListener("input", () => { chosen.rate = RATES[byId("rate").value]; drawControls(); });

// --- the server ------------------------------------------------------------------------------------------------------

async function readModel() {
  const [model] = (await api.json("GET", "v1/models")).data;
  const builtin = model.id.startsWith("builtin");
  byId("model-name").textContent = model.id;
  byId("model-name").hidden = false;
  const about = model.description ?? "";
  const [first, ...rest] = about.split(/(?<=\.) /);
  byId("knows-first").textContent = first;
  byId("knows-rest").textContent = rest.join(" ");
  byId("picker-knows").textContent = about;
  byId("knows").open = matchMedia("(min-width: 1001px)").matches;
  byId("knows").hidden = byId("picker-knows").hidden = !about;
  conversation.setModel({ builtin });
  watchPanel.setModel({ builtin });
}

/** Looks at the numbers of all streams once a second, less often while the server is away. */
async function poll(failures = 0) {
  try {
    listed = (await api.json("GET", "v1/streams")).data;
    for (const stream of tiles.keys()) {
      const found = listed.find((one) => one.id === stream.id);
      stream.missed = found || stream.isLost ? 0 : stream.missed + 1;
      if (found) stream.measure(found);
      else if (stream.missed > 1) stream.lose(); // once may be a list from before it was opened
    }
    if (!chosen) picker.offer(others());
    await Promise.all([...tiles.keys()].filter(isWatched).map(refreshRules));
    failures = 0;
  } catch {
    failures += 1; // api tells in the header that the server is away
  }
  await wait(POLL * Math.min(16, 2 ** failures));
  return poll(failures);
}

const isWatched = (stream) => stream.watching.rules.length > 0 || (stream === chosen && tabs.shown === "watch");

async function refreshRules(stream) {
  try {
    await stream.watching.refresh();
  } catch (error) {
    if (error.status !== 404) throw error; // a lost stream is found out by its absence from the list
  }
}

async function start() {
  await readModel();
  await reopen();
  if (!tiles.size) choose(null);
  poll();
}

async function startUntilItWorks() {
  for (let seconds = 1; ; seconds = Math.min(16, seconds * 2)) {
    try {
      return await start();
    } catch (error) {
      tellTrouble(error.message);
      const sooner = new AbortController();
      api.addEventListener("key", () => sooner.abort(), { once: true });
      await wait(seconds * 1000, sooner.signal);
    }
  }
}

function tellTrouble(text) {
  if (byId("server-trouble").textContent !== text) byId("server-trouble").textContent = text;
}

api.askForKey = () => askForKey(api);
api.addEventListener("unreachable", () => tellTrouble("The server does not answer. Trying again."));
api.addEventListener("reachable", () => tellTrouble(""));
api.addEventListener("keyless", () => { byId("enter-key").hidden = false; });
api.addEventListener("key", () => { byId("enter-key").hidden = true; });
byId("enter-key").addEventListener("click", () => api.enterKey());
document.addEventListener("visibilitychange", showEvents);
document.querySelector(".skip").addEventListener("click", () => tabs.choose(byId("tab-questions")));
setInterval(() => tiles.forEach((tile) => tile.draw()), 500); // the clocks
choose(null);
startUntilItWorks();
