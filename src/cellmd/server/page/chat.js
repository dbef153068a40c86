// The server's interface: which model it has, and answers as they come.

export async function describe(key) {
  const answer = await ask("v1/models", { headers: headers(key) });
  return (await answer.json()).data[0];
}

// Calls onDelta({content, reasoning_content}) for every piece; returns {finish, usage, timings}.
export async function stream(body, key, signal, onDelta) {
  const answer = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const ended = { finish: null, usage: null, timings: null };
  for await (const event of events(answer.body)) {
    if (event.error) throw new Error(event.error.message);
    ended.usage = event.usage ?? ended.usage;
    ended.timings = event.timings ?? ended.timings;
    const choice = event.choices[0];
    if (!choice) continue;
    ended.finish = choice.finish_reason ?? ended.finish;
    onDelta(choice.delta);
  }
  return ended;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (held + value).split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const content = await answer.json().catch(() => null);
  const error = new Error(content?.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}
