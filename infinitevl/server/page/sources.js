// What a stream can watch. Every source has:
//   kind, name   what it is, and what people call it
//   element      what shows it: a video, picture or canvas (null where the server follows an address)
//   time         seconds since it began, without pauses
//   grab()       the picture of this moment as a JPEG, or null if there is none yet
//   sent()       is told that the server has read a picture
//   pause(), resume(), stop()
// It calls onend(why) when it has no more pictures.

import { drawSample } from "./sample.js";
import { make } from "./dom.js";

const LONGEST_SIDE = 768; // pixels; larger pictures are made smaller before they are sent
const QUALITY = 0.85;

/** A person can read the message of this error and act on it. */
export class SourceError extends Error {}

export async function openSource(kind, detail) {
  if (kind === "camera") return new LiveSource(kind, "Camera", await capture("camera"));
  if (kind === "screen") return new LiveSource(kind, "Screen", await capture("screen"));
  if (kind === "sample") return new SampleSource();
  if (kind === "address") return new AddressSource(detail);
  return detail.type.startsWith("image/") ? PictureSource.open(detail) : FileSource.open(detail);
}

async function capture(what) {
  const devices = navigator.mediaDevices;
  const open = what === "camera" ? devices?.getUserMedia : devices?.getDisplayMedia;
  if (!open) throw new SourceError(`This browser gives no ${what} to this page. Open it from localhost or over https.`);
  const size = { width: { ideal: 1280 }, height: { ideal: 720 } };
  const video = what === "camera" ? { ...size, facingMode: "environment" } : size;
  try {
    return await open.call(devices, { video, audio: false });
  } catch (error) {
    throw new SourceError(refusal(error.name, what));
  }
}

function refusal(name, what) {
  if (name === "NotAllowedError") return `The browser did not allow the ${what}. Allow it beside the address bar, then choose ${what} again.`;
  if (name === "NotFoundError") return `No ${what} was found. Connect one, or choose another source.`;
  if (name === "NotReadableError") return `Another program uses the ${what}. Close it there, then choose ${what} again.`;
  return `The ${what} could not be opened (${name}). Choose another source.`;
}

/** Counts seconds while it runs. */
class Stopwatch {
  #before = 0;
  #since = performance.now();

  get seconds() {
    return this.#before + (this.#since === null ? 0 : (performance.now() - this.#since) / 1000);
  }

  stop() {
    this.#before = this.seconds;
    this.#since = null;
  }

  start() {
    this.#since ??= performance.now();
  }
}

/** What all sources share: a watch, and pictures of an element. */
class Source {
  onend = () => {};
  watch = new Stopwatch();

  constructor(kind, name, element) {
    Object.assign(this, { kind, name, element });
  }

  get time() {
    return this.watch.seconds;
  }

  grab() {
    const { element } = this;
    return jpeg(element, element.videoWidth ?? element.naturalWidth ?? element.width, element.videoHeight ?? element.naturalHeight ?? element.height);
  }

  sent() {}

  pause() {
    this.watch.stop();
  }

  resume() {
    this.watch.start();
  }

  stop() {
    this.watch.stop();
  }
}

/** A camera or a screen. */
class LiveSource extends Source {
  constructor(kind, name, media) {
    super(kind, name, player());
    this.media = media;
    this.element.srcObject = media;
    this.element.play().catch(() => {}); // it plays once it is shown
    media.getVideoTracks()[0].addEventListener("ended", () => this.onend(`${name} was ended. Choose a source to go on.`));
  }

  stop() {
    super.stop();
    this.media.getTracks().forEach((track) => track.stop());
  }
}

/** A video file, played at its own speed. */
class FileSource extends Source {
  static async open(file) {
    const source = new FileSource("file", file.name, player());
    const { element } = source;
    element.src = URL.createObjectURL(file);
    await new Promise((resolve, reject) => {
      element.addEventListener("loadeddata", resolve, { once: true });
      element.addEventListener("error", () => reject(new SourceError(`This browser cannot play ${file.name}. MP4 (H.264) and WebM work in most.`)), { once: true });
    });
    element.addEventListener("ended", () => source.onend("The video has ended. Ask, or choose a source to go on."));
    await element.play();
    return source;
  }

  get time() {
    return this.element.currentTime;
  }

  pause() {
    this.element.pause();
  }

  resume() {
    this.element.play().catch(() => {}); // refused only while it is being removed
  }

  stop() {
    this.element.pause();
    URL.revokeObjectURL(this.element.src);
  }
}

/** One picture. It is sent once. */
class PictureSource extends Source {
  static async open(file) {
    const source = new PictureSource("file", file.name, make("img", { alt: file.name, src: URL.createObjectURL(file) }));
    await source.element.decode().catch(() => {
      throw new SourceError(`This browser cannot read ${file.name}. JPEG, PNG and WebP work.`);
    });
    return source;
  }

  sent() {
    this.onend("The picture was shown once. Ask, or choose a source to go on.");
  }
}

/** Signs and flags that this page draws: the small world that the built-in model knows. */
class SampleSource extends Source {
  constructor() {
    super("sample", "Sample", make("canvas", { width: 448, height: 448 }));
    this.timer = setInterval(() => drawSample(this.element, this.time), 100);
    drawSample(this.element, 0);
  }

  stop() {
    super.stop();
    clearInterval(this.timer);
  }
}

/** An address that the server follows by itself; no picture passes through this page. */
class AddressSource extends Source {
  constructor(address) {
    super("address", shortName(withoutPassword(address)), null);
    this.address = address;
    this.printable = withoutPassword(address);
  }
}

/** The address as it may be shown: what stands before the @ could be a password. */
export const withoutPassword = (address) => address.replace(/\/\/[^/@]*@/, "//");

/** "file:///videos/door.mp4" -> "door.mp4"; "rtsp://camera.local/stream?a=1" -> "camera.local/stream". */
function shortName(address) {
  const [, scheme, rest] = /^(\w+):\/\/([^?#]+)/.exec(address) ?? [];
  if (!rest) return address;
  return scheme === "file" ? rest.split("/").findLast(Boolean) ?? address : rest;
}

const player = () => make("video", { muted: true, playsInline: true, autoplay: true });

/** A picture of an element, at most LONGEST_SIDE pixels long. */
function jpeg(element, width, height) {
  if (!width || !height) return Promise.resolve(null);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  const canvas = make("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  canvas.getContext("2d").drawImage(element, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}
