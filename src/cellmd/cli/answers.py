"""Printing an answer as it comes, and what it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any


def print_stream(pieces: Iterable[Any], *, as_json: bool, show_timings: bool) -> Any:
    """Write the pieces of `model.stream` to stdout as they come (reasoning to stderr) and return the last one.

    With as_json nothing is written before the end; then one object with text, usage, timings and finish reason.
    """
    text: list[str] = []
    reasoning: list[str] = []
    last = None
    for piece in pieces:
        last = piece
        text.append(piece.text)
        reasoning.append(piece.reasoning)
        if not as_json:
            _write(sys.stderr, piece.reasoning)
            _write(sys.stdout, piece.text)
    if last is None:
        return None
    if as_json:
        answer = {
            "text": "".join(text),
            "reasoning": "".join(reasoning),
            "finish_reason": last.finish_reason,
            "usage": last.usage.as_dict(),
            "timings": last.timings.as_dict(),
        }
        print(json.dumps(answer, ensure_ascii=False))
        return last
    print()
    if show_timings:
        print(timings_table(last.usage, last.timings), file=sys.stderr)
    return last


def timings_table(usage: Any, timings: Any) -> str:
    """Stage by stage: what was done, how long it took, at what rate."""
    rows = [(f"features, {kind}", f"{ms:.0f} ms", "") for kind, ms in timings.features_ms.items()]
    rows += [(f"encoder, {kind}", f"{ms:.0f} ms", "") for kind, ms in timings.encoder_ms.items()]
    rows += [
        ("prefill", f"{timings.prefill_ms:.0f} ms", _rate(usage.prompt_tokens, timings.prefill_ms)),
        ("decode", f"{timings.decode_ms:.0f} ms", _rate(usage.completion_tokens - 1, timings.decode_ms)),
    ]
    return "\n".join(f"  {stage:<16}{time:>10}  {rate}".rstrip() for stage, time, rate in rows)


def _rate(tokens: int, ms: float) -> str:
    return f"{tokens} tokens, {tokens / ms * 1000:.1f} tokens/s" if tokens > 0 and ms > 0 else ""


def _write(stream: Any, text: str) -> None:
    if text:
        stream.write(text)
        stream.flush()
