"""What many answers at once gain over one, and whether memory stays flat.

    python bench/server.py model.cellmd                      # 8 answers over one; a long prompt beside an answer
    python bench/server.py model.cellmd --soak-minutes 10    # mixed requests over HTTP; resident memory at the end

Rates are of the same run, one and many in turn, and medians: the machine may be busy with other things. Ends in one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cellmd
from cellmd.errors import CellmdError
from cellmd.runtime.scheduler import Job, Scheduler

PORT = 18080


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--prompt-tokens", type=int, default=1000, help="of the prompt read beside an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--soak-minutes", type=float, help="soak instead of measuring rates")
    args = parser.parse_args()
    measure = soak if args.soak_minutes is not None else rates
    print(json.dumps({"file": args.file.name, **measure(args)}))


# ---- rates --------------------------------------------------------------------------------------------------


def rates(args: argparse.Namespace) -> dict[str, Any]:
    with cellmd.load(args.file, threads=args.threads, context=2048) as model:
        scheduler = model.scheduler(slots=args.at_once)
        try:
            decode_rate(model, scheduler, args.at_once, 4)  # pages of the file are read once
            one, many = [], []
            for _ in range(args.rounds):
                one.append(decode_rate(model, scheduler, 1, args.tokens))
                many.append(decode_rate(model, scheduler, args.at_once, args.tokens))
                print(f"one: {one[-1]:.2f} tokens/s; {args.at_once}: {many[-1]:.2f} tokens/s in all", flush=True)
            alone, beside = stall(model, scheduler, args.tokens, args.prompt_tokens)
        finally:
            scheduler.close()
    ratio = statistics.median(b / a for a, b in zip(one, many, strict=True))
    return {
        "backend": model.backend,
        "at_once": args.at_once,
        "one_tokens_per_s": round(statistics.median(one), 3),
        "many_tokens_per_s": round(statistics.median(many), 3),
        "ratio": round(ratio, 3),
        "prompt_tokens": args.prompt_tokens,
        "longest_step_alone_s": round(alone, 3),
        "longest_step_beside_prompt_s": round(beside, 3),
    }


def stall(model: cellmd.Model, scheduler: Scheduler, n_tokens: int, n_prompt: int) -> tuple[float, float]:
    """The longest that an answer waits for a token, in seconds: alone, and while a long prompt is read beside it."""
    answer = model.request("Tell me about the sea.", temperature=0.0, max_tokens=1024)
    answer.settings.end_ids = ()
    job = scheduler.submit(answer, lambda piece: None)
    alone = longest_step(job, until=lambda: job.answering.n_tokens > n_tokens)
    prompt = cellmd.Prompt((2, *random.Random(0).choices(range(1000, 2000), k=n_prompt - 1)))
    reading = scheduler.submit(model.request(prompt, max_tokens=1), lambda piece: None)
    beside = longest_step(job, until=lambda: reading.answering.n_tokens > 0)
    job.cancel()
    return alone, beside


def longest_step(job: Job, until: Callable[[], bool]) -> float:
    longest, latest, n_tokens = 0.0, None, job.answering.n_tokens
    while not until():
        if job.answering.n_tokens != n_tokens:
            now, n_tokens = time.perf_counter(), job.answering.n_tokens
            longest = longest if latest is None else max(longest, now - latest)
            latest = now
        time.sleep(0.001)
    return longest


def decode_rate(model: cellmd.Model, scheduler: Scheduler, n: int, n_tokens: int) -> float:
    """Tokens a second of n answers together, from when all have their first token to when the first one ends."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def deliver(what: Any) -> None:
        if isinstance(what, CellmdError) or what.finish_reason is not None:
            ended.put(what)

    counts = scheduler.counts
    first = counts.completion_tokens + n
    for i in range(n):
        request = model.request(f"Conversation {i}: tell me about the sea.", temperature=0.0, max_tokens=n_tokens)
        request.settings.end_ids = ()
        scheduler.submit(request, deliver)
    while counts.completion_tokens < first:
        time.sleep(0.001)
    began, done = time.perf_counter(), counts.completion_tokens
    for _ in range(n):
        what = ended.get()
        if isinstance(what, CellmdError):
            raise what
    return (counts.completion_tokens - done) / (time.perf_counter() - began)


# ---- soak ---------------------------------------------------------------------------------------------------


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Clients that stream, leave, send too much and send nonsense, against a server in a process of its own. Its memory
    after each fifth of the time."""
    import httpx

    command = [
        sys.executable,
        "-m",
        "cellmd.cli.main",
        "serve",
        str(args.file),
        "--port",
        str(PORT),
        "--context",
        "2048",
    ]
    command += ["--slots", str(args.at_once), "--queue", str(args.at_once)]
    command += [] if args.threads is None else ["--threads", str(args.threads)]
    url = f"http://127.0.0.1:{PORT}"
    ends = time.monotonic() + 60 * args.soak_minutes
    statuses: Counter[int] = Counter()

    def client(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < ends:
            body, leaves = nonsense(rng)
            try:
                with httpx.stream("POST", f"{url}/v1/chat/completions", content=body, timeout=300) as answer:
                    statuses[answer.status_code] += 1
                    for i, _ in enumerate(answer.iter_bytes()):
                        if i == leaves:
                            break
            except httpx.TransportError:
                statuses[0] += 1

    with subprocess.Popen(command) as process:
        while not answers(url):
            time.sleep(0.1)
        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(2 * args.at_once)]
        for thread in clients:
            thread.start()
        resident = []
        for _ in range(5):
            time.sleep(12 * args.soak_minutes)
            resident.append(resident_mib(process.pid))
        for thread in clients:
            thread.join()
        metrics = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
    names = ("finished", "cancelled", "failed", "refused")
    return {
        "minutes": args.soak_minutes,
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        **{name: int(re.findall(rf"^cellmd_{name}_total (\d+)", metrics, re.MULTILINE)[0]) for name in names},
        "resident_mib": resident,
        "exit_code": process.returncode,
    }


def answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def nonsense(rng: random.Random) -> tuple[bytes, int]:
    """A request, and after how many pieces of the answer its client leaves (-1: never)."""
    kind = rng.choices(["chat", "leave", "broken", "large", "deep"], [10, 3, 1, 1, 1])[0]
    if kind == "broken":
        return rng.randbytes(200), -1
    if kind == "large":
        return b" " * (5 << 20), -1
    if kind == "deep":
        return b'{"messages":' + b"[" * 10_000, -1
    text = " ".join(rng.choices(["sea", "wind", "ship", "tell", "me", "about", "why"], k=rng.randrange(1, 150)))
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_completion_tokens": rng.randrange(1, 60),
        "stream": True,
    }
    return json.dumps(body).encode(), rng.randrange(1, 20) if kind == "leave" else -1


def resident_mib(process: int) -> int:
    """Of memory that is the process's own: pages of the mapped file come and go."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) >> 10
    raise SystemExit("this system does not tell how much memory a process has of its own")


if __name__ == "__main__":
    main()
