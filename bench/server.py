"""What many answers at once gain over one.

    python bench/server.py model.cellmd      # 8 answers over one; a long prompt beside an answer

Whether memory stays flat: bench/soak.py.

Rates are of the same run, one and many in turn, and medians: the machine may be busy with other things. Ends in one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cellmd
from cellmd.errors import CellmdError
from cellmd.runtime.job import Job
from cellmd.runtime.scheduler import Scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--prompt-tokens", type=int, default=1000, help="of the prompt read beside an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    print(json.dumps({"file": args.file.name, **rates(args)}))


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


if __name__ == "__main__":
    main()
