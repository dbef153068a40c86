// The page: conversations, the composer, settings. Everything is kept in this browser.

import { modelName, stream } from "./chat.js";
import { markdown } from "./markdown.js";
import { Recorder, attachment, part, shown } from "./media.js";

const $ = (id) => document.getElementById(id);
const settings = $("settings").querySelector("form").elements;
const NUMBERS = ["temperature", "top_p", "top_k", "seed", "max_completion_tokens"];
const recorder = new Recorder();

let conversations = stored("conversations", []);
let current = conversations[0] ?? begun();
let attached = [];
let running = null; // the AbortController of the answer that is being made

// ---- keeping ------------------------------------------------------------------------------------------------

function stored(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`cellmd.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep() {
  const used = conversations.filter((one) => one.messages.length);
  try {
    localStorage.setItem("cellmd.conversations", JSON.stringify(used));
  } catch { // media fill the browser's few megabytes soon: then only their names are kept
    const light = (key, value) => (key === "url" ? undefined : value);
    try {
      localStorage.setItem("cellmd.conversations", JSON.stringify(used, light));
    } catch {
      tell("The browser has no room left to keep conversations.");
    }
  }
}

function keepSettings() {
  const values = Object.fromEntries(["system", ...NUMBERS].map((name) => [name, settings[name].value]));
  localStorage.setItem("cellmd.settings", JSON.stringify({ ...values, reasoning: settings.reasoning.checked }));
  sessionStorage.setItem("cellmd.key", settings.key.value);
}

function loadSettings() {
  const values = stored("settings", {});
  for (const name of ["system", ...NUMBERS]) settings[name].value = values[name] ?? "";
  settings.reasoning.checked = Boolean(values.reasoning);
  settings.key.value = sessionStorage.getItem("cellmd.key") ?? "";
  setTheme(localStorage.getItem("cellmd.theme"));
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function begun() {
  const one = { id: crypto.randomUUID?.() ?? String(Math.random()), messages: [] };
  conversations.unshift(one);
  return one;
}

// ---- showing ------------------------------------------------------------------------------------------------

function make(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function button(text, onClick) {
  const made = make("button", text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

function tell(text) {
  $("status").textContent = text;
}

function showList() {
  $("list").replaceChildren(...conversations.filter((one) => one.messages.length || one === current).map((one) => {
    const item = make("li");
    const title = one.messages[0]?.text.slice(0, 60) || "New conversation";
    const forget = button("✕", () => forgetConversation(one));
    forget.setAttribute("aria-label", `Delete ${title}`);
    item.append(button(title, () => open(one)), forget);
    item.setAttribute("aria-current", String(one === current));
    return item;
  }));
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((one) => {
    const item = make("li", one.name);
    const remove = button("✕", () => {
      attached = attached.filter((other) => other !== one);
      showAttached();
    });
    remove.setAttribute("aria-label", `Remove ${one.name}`);
    item.append(remove);
    return item;
  }));
}

function showAll() {
  $("messages").replaceChildren(...current.messages.map(shownMessage));
  showList();
  toEnd(true);
}

function shownMessage(message, index) {
  const item = make("li", "", message.error ? "error" : message.role);
  const media = make("div", "", "media");
  media.append(...(message.media ?? []).map(shown));
  const reasoning = make("details");
  reasoning.append(make("summary", "Reasoning"), make("span"));
  const body = make("div", "", "body");
  const tools = make("div", "", "tools");
  item.append(media, reasoning, body, tools);
  fill(item, message);
  if (message.role === "user") {
    tools.append(button("Edit", () => edit(index)));
  } else {
    tools.append(button("Copy", () => navigator.clipboard?.writeText(message.text)));
    tools.append(button("Again", () => again(index)));
    tools.append(make("span", message.figures ?? ""));
  }
  return item;
}

function fill(item, message) {
  const [media, reasoning, body] = item.children;
  media.hidden = !media.children.length;
  reasoning.hidden = !message.reasoning;
  reasoning.lastChild.textContent = message.reasoning ?? "";
  if (message.role === "assistant" && !message.error) body.replaceChildren(markdown(message.text));
  else body.textContent = message.text;
}

function toEnd(always) {
  const box = $("messages");
  if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
}

// ---- conversations ------------------------------------------------------------------------------------------

function open(one) {
  running?.abort();
  current = one;
  $("side").classList.remove("open");
  showAll();
  $("text").focus();
}

function forgetConversation(one) {
  conversations = conversations.filter((other) => other !== one);
  keep();
  open(one === current ? conversations[0] ?? begun() : current);
}

function edit(index) {
  running?.abort();
  const message = current.messages[index];
  current.messages = current.messages.slice(0, index);
  attached = message.media ?? [];
  $("text").value = message.text;
  showAttached();
  showAll();
  fit();
  $("text").focus();
}

function again(index) {
  running?.abort();
  current.messages = current.messages.slice(0, index);
  showAll();
  answer();
}

function send() {
  const text = $("text").value.trim();
  if (running || (!text && !attached.length)) return;
  current.messages.push({ role: "user", text, media: attached });
  attached = [];
  $("text").value = "";
  fit();
  showAttached();
  showAll();
  answer();
}

// ---- answers ------------------------------------------------------------------------------------------------

function request(messages) {
  const system = settings.system.value.trim();
  const turns = messages.filter((message) => !message.error).map(({ role, text, media }) => ({
    role,
    content: media?.length ? [...media.map(part), { type: "text", text }] : text,
  }));
  const body = { messages: system ? [{ role: "system", content: system }, ...turns] : turns };
  for (const name of NUMBERS) if (settings[name].value !== "") body[name] = Number(settings[name].value);
  body.chat_template_kwargs = { enable_thinking: settings.reasoning.checked };
  return body;
}

async function answer() {
  const own = current;
  const body = request(own.messages);
  const message = { role: "assistant", text: "", reasoning: "" };
  own.messages.push(message);
  showAll();
  const item = $("messages").lastChild;
  const abort = new AbortController();
  running = abort;
  busy(true);
  let due = false;
  const draw = () => {
    due = false;
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
  if (running === abort) {
    running = null;
    busy(false);
  }
  keep();
  if (own === current) showAll();
}

function failed(message, error) {
  if (error.name === "AbortError") {
    message.figures = "stopped";
    return;
  }
  message.error = !message.text;
  message.figures = error.message;
  if (message.error) message.text = error.message;
  if (error.status === 401) $("settings").showModal();
}

function figures({ finish, usage, timings }) {
  const rate = timings?.decode_tokens_per_s;
  const parts = [usage && `${usage.completion_tokens} tokens`, rate && `${rate.toFixed(1)} tokens/s`];
  return [...parts, finish === "length" && "cut at the longest answer"].filter(Boolean).join(", ");
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
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
    if (recorder.running) attached.push(await recorder.stop());
    else await recorder.start();
    tell(recorder.running ? "Recording; press ● again to end." : "");
  } catch (error) {
    tell(`No recording: ${error.message}`);
  }
  $("record").setAttribute("aria-pressed", String(recorder.running));
  showAttached();
}

function fit() {
  const text = $("text");
  text.rows = Math.min(10, text.value.split("\n").length);
}

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches) {
      event.preventDefault();
      send();
    }
  });
  $("text").addEventListener("input", fit);
  $("text").addEventListener("paste", (event) => attach(event.clipboardData.files));
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("settings").open) running?.abort();
  });
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", async () => {
    await attach($("files").files);
    $("files").value = "";
  });
  $("record").addEventListener("click", record);
  $("new").addEventListener("click", () => open(current.messages.length ? begun() : current));
  $("show-list").addEventListener("click", () => {
    const isOpen = $("side").classList.toggle("open");
    $("show-list").setAttribute("aria-expanded", String(isOpen));
  });
  $("show-settings").addEventListener("click", () => $("settings").showModal());
  $("settings").addEventListener("close", () => {
    keepSettings();
    greet();
  });
  $("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const shownTheme = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    const theme = shownTheme === "dark" ? "light" : "dark";
    localStorage.setItem("cellmd.theme", theme);
    setTheme(theme);
  });
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
    $("model").textContent = document.title = await modelName(settings.key.value);
    tell("");
  } catch (error) {
    tell(error.message);
    if (error.status === 401) $("settings").showModal();
  }
}

loadSettings();
listen();
showAll();
greet();
