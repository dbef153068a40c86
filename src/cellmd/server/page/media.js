// Files and recordings as parts of a message.

import { make } from "./elements.js";

const NAMES = { image: "pictures", audio: "sound", video: "film" };

// What a model takes beside text, of those it names, and the files that are of such a kind.
export function kinds(modalities) {
  const taken = Object.keys(NAMES).filter((kind) => modalities.includes(kind));
  const names = new Intl.ListFormat("en", { type: "conjunction", style: "long" }).format(taken.map((kind) => NAMES[kind]));
  return { names, accept: taken.map((kind) => `${kind}/*`).join(",") };
}

export async function attachment(file) {
  const kind = Object.keys(NAMES).find((name) => file.type.startsWith(`${name}/`));
  if (!kind) throw new Error(`${file.name || "This"} is no picture, sound or film.`);
  return { kind, name: file.name || kind, url: await dataUrl(file) };
}

// detail: of pictures: auto, low or high.
export function part({ kind, url }, detail) {
  if (kind === "image") return { type: "image_url", image_url: { url, detail } };
  if (kind === "video") return { type: "video_url", video_url: { url } };
  const format = /^data:audio\/(?:x-)?([\w.-]+)/.exec(url)?.[1] ?? "wav";
  return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } };
}

export function shown({ kind, name, url }) {
  const made = make(kind === "image" ? "img" : kind);
  made.src = url;
  if (kind === "image") made.alt = name;
  else made.controls = true;
  return made;
}

// What stands before its name while it is attached.
export function preview(medium) {
  return medium.kind === "image" ? [shown(medium)] : [];
}

export class Recorder {
  #recorder = null;
  #timer = 0;

  get running() {
    return this.#recorder !== null;
  }

  // onSecond: is told the seconds so far.
  async start(onSecond) {
    if (!navigator.mediaDevices) throw new Error("the browser gives the microphone to pages of this machine or https only");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.start();
    let seconds = 0;
    onSecond(seconds);
    this.#timer = setInterval(() => onSecond(++seconds), 1000);
  }

  async stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
    clearInterval(this.#timer);
    const chunks = [];
    recorder.addEventListener("dataavailable", (event) => chunks.push(event.data));
    const ended = new Promise((resolve) => recorder.addEventListener("stop", resolve));
    recorder.stop();
    await ended;
    recorder.stream.getTracks().forEach((track) => track.stop());
    const type = recorder.mimeType.split(";")[0].replace("video/", "audio/") || "audio/webm";
    return attachment(new File(chunks, "recording", { type }));
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.replace(/^data:([^;,]*)[^,]*,/, "data:$1;base64,")));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
