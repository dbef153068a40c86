// Files and recordings as parts of a message.

export async function attachment(file) {
  const kind = ["image", "audio", "video"].find((name) => file.type.startsWith(`${name}/`));
  if (!kind) throw new Error(`${file.name || "this"} is no picture, sound or film`);
  return { kind, name: file.name || kind, url: await dataUrl(file) };
}

export function part({ kind, name, url }) {
  if (!url) return { type: "text", text: `[${name}, no longer kept]` };
  if (kind === "image") return { type: "image_url", image_url: { url } };
  if (kind === "video") return { type: "video_url", video_url: { url } };
  const format = /^data:audio\/(?:x-)?([\w.-]+)/.exec(url)?.[1] ?? "wav";
  return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } };
}

export function shown({ kind, name, url }) {
  if (!url) return document.createTextNode(`[${name}]`);
  const made = document.createElement(kind === "image" ? "img" : kind);
  made.src = url;
  if (kind === "image") made.alt = name;
  else made.controls = true;
  return made;
}

export class Recorder {
  #recorder = null;

  get running() {
    return this.#recorder !== null;
  }

  async start() {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.start();
  }

  async stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
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
