"""What many answers at once gain over one, and whether memory stays flat.

    python bench/server.py model.cellmd                      # total decode rate of 8 answers over that of one
    python bench/server.py model.cellmd --soak-minutes 10    # mixed requests over HTTP; resident memory at the end

Rates are of the same run, one and many in turn, and medians: the machine may be busy with other things. Ends in one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import cellmd
from cellmd.errors import CellmdError
from cellmd.runtime.scheduler import Scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--soak-minutes", type=float, help="soak instead of measuring rates")
    args = parser.parse_args()
    with cellmd.load(args.file, threads=args.threads, context=2048) as model:
        measure = soak if args.soak_minutes is not None else rates
        print(json.dumps({"file": args.file.name, "backend": model.backend, **measure(model, args)}))


# ---- rates --------------------------------------------------------------------------------------------------


def rates(model: cellmd.Model, args: argparse.Namespace) -> dict[str, Any]:
    scheduler = model.scheduler(slots=args.at_once)
    try:
        decode_rate(model, scheduler, args.at_once, 4)  # pages of the file are read once
        one, many = [], []
        for _ in range(args.rounds):
            one.append(decode_rate(model, scheduler, 1, args.tokens))
            many.append(decode_rate(model, scheduler, args.at_once, args.tokens))
            print(f"one: {one[-1]:.2f} tokens/s; {args.at_once}: {many[-1]:.2f} tokens/s in all", flush=True)
    finally:
        scheduler.close()
    ratio = statistics.median(b / a for a, b in zip(one, many, strict=True))
    return {
        "at_once": args.at_once,
        "one_tokens_per_s": round(statistics.median(one), 3),
        "many_tokens_per_s": round(statistics.median(many), 3),
        "ratio": round(ratio, 3),
    }


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


def soak(model: cellmd.Model, args: argparse.Namespace) -> dict[str, Any]:
    """Clients that stream, leave, send too much and send nonsense. Memory after the first fifth and at the end."""
    import httpx

    from cellmd.server.run import server
    from cellmd.server.settings import ServerSettings

    settings = ServerSettings(port=18080, max_body_bytes=4 << 20)
    running, engine = server(model, settings, slots=args.at_once, queue_limit=args.at_once)
    threading.Thread(target=running.run, daemon=True).start()
    while not running.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{settings.port}/v1/chat/completions"
    ends = time.monotonic() + 60 * args.soak_minutes
    statuses: dict[int, int] = {}

    def client(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < ends:
            body, leaves = nonsense(rng)
            try:
                with httpx.stream("POST", url, content=body, timeout=300) as answer:
                    statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                    for i, _ in enumerate(answer.iter_bytes()):
                        if i == leaves:
                            break
            except httpx.TransportError:
                statuses[0] = statuses.get(0, 0) + 1

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(2 * args.at_once)]
    for thread in clients:
        thread.start()
    time.sleep(60 * args.soak_minutes / 5)
    early = resident_mib()
    for thread in clients:
        thread.join()
    late = resident_mib()
    running.should_exit = True
    engine.scheduler.close(drain_seconds=10)
    counts = engine.scheduler.counts
    return {
        "minutes": args.soak_minutes,
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "answers": counts.finished,
        "cancelled": counts.cancelled,
        "failed": counts.failed,
        "resident_mib_early": early,
        "resident_mib_late": late,
    }


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


def resident_mib() -> int:
    """Of memory that is the process's own: pages of the mapped file come and go."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) >> 10
    raise SystemExit("this system does not tell how much memory a process has of its own")


if __name__ == "__main__":
    main()
