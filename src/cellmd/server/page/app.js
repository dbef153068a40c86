// The page: conversations, the composer, settings, and what happens when something is pressed.

import { describe, stream } from "./chat.js";
import { button, iconButton, make } from "./elements.js";
import { Recorder, attachment, kinds, part, preview } from "./media.js";
import * as store from "./store.js";
import { figures, fill, messageItem } from "./view.js";

const $ = (id) => document.getElementById(id);
const settings = $("settings-form").elements;
const KEPT = ["system", "temperature", "top_p", "top_k", "seed", "max_completion_tokens", "detail"];
const NUMBERS = KEPT.slice(1, -1);
const recorder = new Recorder();
const running = new Map(); // conversation -> the AbortController of the answer that is being made

let conversations = [];
let current = begun();
let attached = [];
let stuck = true; // to the end of the messages, until somebody scrolls up
let editing = null; // the index of the message that the next one takes the place of

// ---- keeping ------------------------------------------------------------------------------------------------

function begun() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), changed: Date.now(), messages: [] };
}

async function keep(conversation) {
  const messages = conversation.messages.map(({ running: _, ...kept }) => kept);
  try {
    await store.keep({ ...conversation, messages });
  } catch {
    tell("This browser does not keep conversations.");
  }
}

function keepSettings() {
  const values = Object.fromEntries(KEPT.map((name) => [name, settings[name].value]));
  store.keepSetting("settings", { ...values, reasoning: settings.reasoning.checked });
  sessionStorage.setItem("cellmd.key", settings.key.value);
}

function loadSettings() {
  const values = store.setting("settings", {});
  for (const name of KEPT) settings[name].value = values[name] ?? settings[name].value;
  settings.reasoning.checked = Boolean(values.reasoning);
  settings.key.value = sessionStorage.getItem("cellmd.key") ?? "";
  const theme = store.setting("theme", null);
  if (theme) document.documentElement.dataset.theme = theme;
}

// ---- showing ------------------------------------------------------------------------------------------------

function tell(text) {
  $("status").textContent = text;
}

function titleOf(conversation) {
  return conversation.messages[0]?.text.slice(0, 80) || conversation.messages[0]?.media?.[0]?.name || "New conversation";
}

function showList() {
  $("list").replaceChildren(...conversations.map((one) => {
    const item = make("li");
    const title = titleOf(one);
    item.append(button(title, () => open(one)), iconButton("remove", `Delete ${title}`, () => forget(one)));
    item.setAttribute("aria-current", String(one === current));
    return item;
  }));
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((one) => {
    const item = make("li");
    const remove = iconButton("remove", `Remove ${one.name}`, () => {
      attached = attached.filter((other) => other !== one);
      showAttached();
    });
    item.append(...preview(one), make("span", one.name), remove);
    return item;
  }));
  ready();
}

function showAll() {
  $("messages").replaceChildren(...current.messages.map((message, index) => {
    return messageItem(message, () => edit(index), () => again(index));
  }));
  $("messages").children[editing]?.classList.add("editing");
  $("welcome").hidden = current.messages.length > 0;
  showList();
  ready();
  toEnd(true);
}

function ready() {
  const busy = running.has(current);
  $("messages").setAttribute("aria-busy", String(busy));
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("send").disabled = !$("text").value.trim() && !attached.length;
}

function fit() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  ready();
}

function fromEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight;
}

function toEnd(always) {
  const box = $("messages");
  if (always || stuck) box.scrollTop = box.scrollHeight;
  $("to-end").hidden = fromEnd() < 300;
}

// ---- conversations ------------------------------------------------------------------------------------------

function open(one) {
  current = one;
  editing = null;
  showSide(false);
  showAll();
  $("text").focus();
}

function showSide(shown) {
  $("side").classList.toggle("open", shown);
  $("show-list").setAttribute("aria-expanded", String(shown));
}

async function forget(one) {
  if (!confirm(`Delete “${titleOf(one)}”?`)) return;
  running.get(one)?.abort();
  conversations = conversations.filter((other) => other !== one);
  await store.forget(one).catch(() => {});
  open(one === current ? begun() : current);
}

function compose(text, media) {
  $("text").value = text;
  attached = media;
  showAttached();
  fit();
}

function edit(index) {
  running.get(current)?.abort();
  const { text, media } = current.messages[index];
  editing = index;
  compose(text, media ?? []);
  showAll();
  tell("Editing; Esc leaves it as it was");
  $("text").focus();
}

function leaveEditing() {
  editing = null;
  compose("", []);
  tell("");
  showAll();
}

function again(index) {
  running.get(current)?.abort();
  current.messages = current.messages.slice(0, index);
  answer(current);
}

function send() {
  const text = $("text").value.trim();
  if (running.has(current) || (!text && !attached.length)) return;
  if (editing !== null) current.messages = current.messages.slice(0, editing);
  current.messages.push({ role: "user", text, media: attached });
  editing = null;
  compose("", []);
  tell("");
  answer(current);
}

// ---- answers ------------------------------------------------------------------------------------------------

function request(messages) {
  const system = settings.system.value.trim();
  const turns = messages.filter((message) => !message.error).map(({ role, text, media }) => ({
    role,
    content: media?.length ? [...media.map((one) => part(one, settings.detail.value)), { type: "text", text }] : text,
  }));
  const body = { messages: system ? [{ role: "system", content: system }, ...turns] : turns };
  for (const name of NUMBERS) if (settings[name].value !== "") body[name] = Number(settings[name].value);
  body.chat_template_kwargs = { enable_thinking: settings.reasoning.checked };
  return body;
}

async function answer(own) {
  const body = request(own.messages);
  const message = { role: "assistant", text: "", reasoning: "", running: true };
  const abort = new AbortController();
  own.changed = Date.now();
  own.messages.push(message);
  conversations = [own, ...conversations.filter((one) => one !== own)];
  running.set(own, abort);
  if (own === current) showAll();
  else showList();
  keep(own);
  let due = false;
  const draw = () => {
    due = false;
    const item = own === current && $("messages").children[own.messages.indexOf(message)];
    if (!item) return;
    fill(item, message);
    toEnd(false);
  };
  try {
    const ended = await stream(body, settings.key.value, abort.signal, (delta) => {
      message.text += delta.content ?? "";
      message.reasoning += delta.reasoning_content ?? "";
      if (!due) requestAnimationFrame(draw);
      due = true;
    });
    message.figures = figures(ended);
  } catch (error) {
    failed(message, error);
  }
  message.running = false;
  if (running.get(own) === abort) running.delete(own);
  if (own.messages.includes(message)) keep(own);
  draw();
  ready();
}

function failed(message, error) {
  if (error.name === "AbortError") {
    message.figures = "stopped";
    return;
  }
  message.error = !message.text;
  message.figures = message.error ? "" : error.message;
  if (message.error) message.text = error.message;
  if (error.status === 401) $("settings").showModal();
}

// ---- the composer -------------------------------------------------------------------------------------------

async function attach(files) {
  for (const file of files) {
    try {
      attached.push(await attachment(file));
      tell("");
    } catch (error) {
      tell(error.message);
    }
  }
  showAttached();
}

async function record() {
  try {
    if (recorder.running) {
      attached.push(await recorder.stop());
      tell("");
    } else {
      await recorder.start((seconds) => tell(`Recording ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`));
    }
  } catch (error) {
    tell(`No recording: ${error.message}`);
  }
  $("record").setAttribute("aria-pressed", String(recorder.running));
  showAttached();
}

function escaped() {
  if ($("settings").open) return;
  if ($("side").classList.contains("open")) showSide(false);
  else if (editing !== null) leaveEditing();
  else running.get(current)?.abort();
}

function typed(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches) {
    event.preventDefault();
    send();
  }
  const last = current.messages.findLastIndex((message) => message.role === "user");
  if (event.key === "ArrowUp" && !$("text").value && !running.has(current) && last >= 0) {
    event.preventDefault();
    edit(last);
  }
}

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("text").addEventListener("keydown", typed);
  $("text").addEventListener("input", fit);
  $("text").addEventListener("paste", (event) => attach(event.clipboardData.files));
  $("stop").addEventListener("click", () => running.get(current)?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && escaped());
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", async () => {
    await attach($("files").files);
    $("files").value = "";
  });
  $("record").addEventListener("click", record);
  $("new").addEventListener("click", () => open(begun()));
  $("show-list").addEventListener("click", () => showSide(!$("side").classList.contains("open")));
  $("show-settings").addEventListener("click", () => $("settings").showModal());
  $("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
  $("settings").addEventListener("close", () => {
    keepSettings();
    greet();
  });
  settings.reasoning.addEventListener("change", keepSettings);
  $("theme").addEventListener("click", () => {
    const root = document.documentElement.dataset;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.theme = (root.theme ?? system) === "dark" ? "light" : "dark";
    store.keepSetting("theme", root.theme);
  });
  $("messages").addEventListener("scroll", () => {
    stuck = fromEnd() < 120;
    $("to-end").hidden = fromEnd() < 300;
  });
  for (const grown of ["load", "loadedmetadata"]) $("messages").addEventListener(grown, () => toEnd(false), true);
  new ResizeObserver(() => toEnd(false)).observe($("messages"));
  $("to-end").addEventListener("click", () => toEnd(true));
  addEventListener("visibilitychange", () => document.hidden && [...running.keys()].forEach(keep));
  const main = document.querySelector("main");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    main.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? main.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    main.classList.remove("dropping");
    attach(event.dataTransfer.files);
  });
}

async function greet() {
  try {
    const model = await describe(settings.key.value);
    $("model").textContent = document.title = model.id;
    const { names, accept } = kinds(model.input_modalities);
    $("takes").textContent = names && `You can attach ${names}, or drop them here.`;
    $("files").accept = accept;
    $("attach").hidden = !accept;
    $("record").hidden = !model.input_modalities.includes("audio");
    tell("");
  } catch (error) {
    tell(error.message);
    if (error.status === 401 && !$("settings").open) $("settings").showModal();
  }
}

async function start() {
  loadSettings();
  listen();
  fit();
  try {
    conversations = await store.conversations();
  } catch {
    tell("This browser does not keep conversations.");
  }
  open(conversations[0] ?? current);
  await greet();
}

start();
