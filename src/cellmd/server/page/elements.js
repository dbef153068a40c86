// Small parts that everything on the page is made of.

export function make(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

export function button(text, onClick) {
  const made = make("button", text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

// icon: the name of a symbol in index.html. label: what it does, for those who do not see it.
export function iconButton(icon, label, onClick) {
  const made = button("", onClick);
  made.className = "icon";
  made.title = label;
  made.setAttribute("aria-label", label);
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${icon}`);
  drawing.append(use);
  made.append(drawing);
  return made;
}

// textOf: gives what is copied, once the button is pressed.
export function copyButton(textOf) {
  const made = button("Copy", async () => {
    await copy(textOf());
    made.textContent = "Copied";
    setTimeout(() => (made.textContent = "Copy"), 1500);
  });
  return made;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page that came over plain http from another machine may not
    const area = make("textarea", text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
