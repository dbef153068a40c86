// What is kept, in this browser alone: conversations with their media in its database, settings beside them.

const opening = new Promise((resolve, reject) => {
  const request = indexedDB.open("cellmd", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});
opening.catch(() => {}); // told by whoever needs it

async function done(mode, act) {
  const request = act((await opening).transaction("conversations", mode).objectStore("conversations"));
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Latest first.
export async function conversations() {
  const all = await done("readonly", (store) => store.getAll());
  return all.sort((one, other) => other.changed - one.changed);
}

export function keep(conversation) {
  return done("readwrite", (store) => store.put(conversation));
}

export function forget(conversation) {
  return done("readwrite", (store) => store.delete(conversation.id));
}

export function setting(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`cellmd.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function keepSetting(name, value) {
  localStorage.setItem(`cellmd.${name}`, JSON.stringify(value));
}
