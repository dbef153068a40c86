"""What the server did, as text in Prometheus' exposition format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import fields

from cellmd.runtime.job import Counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GAUGES = {"waiting": "Requests that wait for a slot.", "running": "Answers that are being made."}
_COUNTERS = {
    "requests": "Requests taken in.",
    "finished": "Answers that ended.",
    "cancelled": "Answers whose client left.",
    "failed": "Answers that failed.",
    "refused": "Requests refused because the queue was full.",
    "prompt_tokens": "Tokens of prompts.",
    "cached_tokens": "Tokens of prompts that needed no computing.",
    "completion_tokens": "Tokens of answers.",
    "steps": "Forward passes.",
    "rows": "Rows of forward passes.",
    "first_token_seconds": "Seconds from request to first token, summed.",
}


class Metrics:
    """Counts of HTTP answers; those of the model are the scheduler's own."""

    def __init__(self, known_paths: frozenset[str] = frozenset()) -> None:
        self.known_paths = known_paths
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, int]] = Counter()

    def answered(self, path: str, status: int) -> None:
        """path: others than the known ones are counted together, so that strangers cannot make the list long."""
        with self._lock:
            self._answers[path if path in self.known_paths else "other", status] += 1

    def text(self, counts: Counts, n_slots: int) -> str:
        values = {field.name: getattr(counts, field.name) for field in fields(counts)}
        lines = [*_metric("cellmd_slots", "gauge", "Answers that can be made at once.", n_slots)]
        for name, about in _GAUGES.items():
            lines += _metric(f"cellmd_{name}", "gauge", about, values[name])
        for name, about in _COUNTERS.items():
            lines += _metric(f"cellmd_{name}_total", "counter", about, values[name])
        lines += ["# HELP cellmd_http_answers_total HTTP answers.", "# TYPE cellmd_http_answers_total counter"]
        with self._lock:
            for (path, status), n in sorted(self._answers.items()):
                lines.append(f'cellmd_http_answers_total{{path="{path}",status="{status}"}} {n}')
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, about: str, value: float) -> list[str]:
    return [
        f"# HELP {name} {about}",
        f"# TYPE {name} {kind}",
        f"{name} {value:g}" if value % 1 else f"{name} {value:.0f}",
    ]
