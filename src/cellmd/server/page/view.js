// How a message looks.

import { button, copyButton, make } from "./elements.js";
import { markdown } from "./markdown.js";
import { shown } from "./media.js";

// onEdit, onAgain: what is done if that is wanted.
export function messageItem(message, onEdit, onAgain) {
  const item = make("li", "", message.error ? "error" : message.role);
  const media = make("div", "", "media");
  media.append(...(message.media ?? []).map(shown));
  const reasoning = make("details");
  reasoning.append(make("summary"), make("span"));
  item.append(media, reasoning, make("div", "", "body"), make("div", "", "tools"));
  const tools = item.lastChild;
  if (message.role === "user") {
    tools.append(button("Edit", onEdit));
  } else {
    tools.append(copyButton(() => message.text), button("Again", onAgain), make("span"));
  }
  fill(item, message);
  return item;
}

// Show what there is of a message by now.
export function fill(item, message) {
  const [media, reasoning, body, tools] = item.children;
  media.hidden = !media.children.length;
  reasoning.hidden = !message.reasoning;
  reasoning.firstChild.textContent = message.running && !message.text ? "Reasoning …" : "Reasoning";
  reasoning.lastChild.textContent = message.reasoning ?? "";
  item.className = message.error ? "error" : message.role;
  item.classList.toggle("waiting", Boolean(message.running) && !message.text);
  if (message.role === "user") {
    body.textContent = message.text;
    return;
  }
  tools.hidden = Boolean(message.running);
  tools.lastChild.textContent = message.figures ?? "";
  if (message.error) body.textContent = message.text;
  else body.replaceChildren(markdown(message.text));
}

export function figures({ finish, usage, timings }) {
  const rate = timings?.decode_tokens_per_s;
  const first = timings?.prefill_ms / 1000;
  return [
    usage && `${usage.completion_tokens} tokens`,
    rate && `${rate.toFixed(1)} tokens/s`,
    first >= 0.1 && `first after ${first.toFixed(1)} s`,
    finish === "length" && "cut at the longest answer",
  ].filter(Boolean).join(" · ");
}
