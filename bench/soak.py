"""Does the server's memory stay flat? Clients of all kinds, the whole time, against a server in a process of its own.

    python bench/soak.py model.cellmd --minutes 60
    python bench/soak.py model.cellmd --minutes 10     # what scripts/soak runs every night

They stream, leave midway, call tools, look at pictures, have recordings transcribed, go on from earlier responses, send
bodies of 5 MB, nonsense and deep JSON, and open connections that say nothing. Its own memory (pages of the mapped file
come and go) is read every second; of each thirtieth of the time the least counts, when few requests are held. The
median of the last third must not lie above that of the second by more than --most-growth. What is kept up to a bound
fills up meanwhile: encoded media with the first 2,000 answers, the 1,024 latest responses (4 MiB) with the first 7,500.
Ends in one line of JSON, and exit code 1 if memory grew, an answer failed, or the server did not end in good order.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

_SAMPLES = 30
_WORDS = ["sea", "wind", "ship", "tell", "me", "about", "why"]
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}}},
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--at-once", type=int, default=8, help="slots; twice as many clients ask")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--most-growth", type=float, default=8.0, metavar="MIB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(args, Path(folder)) as (process, url):
        statuses, resident = crowd(args, process.pid, url)
        metrics = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    third = len(resident) // 3
    growth = statistics.median(resident[2 * third :]) - statistics.median(resident[third : 2 * third])
    counts = {
        name: int(re.findall(rf"^cellmd_{name}_total (\d+)", metrics, re.MULTILINE)[0])
        for name in ("finished", "cancelled", "failed", "refused", "cached_tokens")
    }
    result = {
        "file": args.file.name,
        "minutes": args.minutes,
        "statuses": dict(sorted(statuses.items())),
        **counts,
        "resident_mib": [round(value, 1) for value in resident],
        "growth_mib": round(growth, 1),
        "exit_code": process.returncode,
    }
    print(json.dumps(result))
    flat = growth <= args.most_growth
    return 0 if flat and not counts["failed"] and process.returncode == 0 and "500" not in statuses else 1


@contextlib.contextmanager
def server(args: argparse.Namespace, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "cellmd.cli.main",
        "serve",
        str(args.file),
        "--port",
        str(port),
        "--context",
        "2048",
    ]
    command += ["--slots", str(args.at_once), "--queue", str(args.at_once)]
    command += ["--cache-dir", str(folder / "cache"), "--cache-size", "0.05"]
    command += [] if args.threads is None else ["--threads", str(args.threads)]
    with subprocess.Popen(command) as process:
        try:
            while not is_up(f"http://127.0.0.1:{port}"):
                time.sleep(0.1)
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def crowd(args: argparse.Namespace, process: int, url: str) -> tuple[Counter[str], list[float]]:
    """Statuses of all answers (0: the connection broke), and MiB of the server's own memory over time."""
    statuses: Counter[str] = Counter()
    ends = time.monotonic() + 60 * args.minutes
    clients = [threading.Thread(target=client, args=(seed, url, ends, statuses)) for seed in range(2 * args.at_once)]
    clients.append(threading.Thread(target=silent, args=(url, ends)))
    for thread in clients:
        thread.start()
    resident = []
    for i in range(_SAMPLES):
        until = ends - 60 * args.minutes * (_SAMPLES - 1 - i) / _SAMPLES
        seen = [own_mib(process)]
        while time.monotonic() < until:
            time.sleep(min(1.0, max(0.0, until - time.monotonic())))
            seen.append(own_mib(process))
        resident.append(min(seen))
    for thread in clients:
        thread.join()
    return statuses, resident


def client(seed: int, url: str, ends: float, statuses: Counter[str]) -> None:
    rng = random.Random(seed)
    response_id = None
    while time.monotonic() < ends:
        path, request, leaves = question(rng, response_id)
        try:
            with httpx.stream("POST", url + path, timeout=300, **request) as answer:
                statuses[str(answer.status_code)] += 1
                content = b""
                for i, piece in enumerate(answer.iter_bytes()):
                    content += piece
                    if i == leaves:
                        break
            if path == "/v1/responses" and answer.status_code == 200:
                response_id = json.loads(content)["id"] if rng.random() < 0.8 else None
            elif answer.status_code in (400, 429):
                response_id = None
        except httpx.TransportError:
            statuses["0"] += 1


def silent(url: str, ends: float) -> None:
    """Connections that say nothing, a hundred at a time."""
    port = int(url.rpartition(":")[2])
    while time.monotonic() < ends:
        with contextlib.ExitStack() as open_:
            for _ in range(100):
                open_.enter_context(socket.create_connection(("127.0.0.1", port)))
            time.sleep(min(5.0, max(0.0, ends - time.monotonic())))


def question(rng: random.Random, response_id: str | None) -> tuple[str, dict[str, Any], int]:
    """Path, request, and after how many pieces of the answer its client leaves (-1: never)."""
    kinds = {"chat": 10, "leave": 3, "tool": 2, "picture": 2, "sound": 1, "response": 3, "text": 1}
    kind = rng.choices([*kinds, "broken", "large", "deep"], [*kinds.values(), 1, 1, 1])[0]
    text = " ".join(rng.choices(_WORDS, k=rng.randrange(1, 150)))
    most = {"max_completion_tokens": rng.randrange(1, 60)}
    chat = "/v1/chat/completions"
    if kind in ("broken", "large", "deep"):
        nonsense = {"broken": rng.randbytes(200), "large": b" " * (5 << 20), "deep": b'{"messages":' + b"[" * 10_000}
        return chat, {"content": nonsense[kind]}, -1
    if kind == "sound":
        return "/v1/audio/transcriptions", {"files": {"file": ("x.wav", sound(again(rng)))}}, -1
    if kind == "response":
        body = {"input": text[:200], "max_output_tokens": 20, "previous_response_id": response_id}
        return "/v1/responses", {"json": body}, -1
    if kind == "text":
        return "/v1/completions", {"json": {"prompt": text, "max_tokens": 10, "n": 2}}, -1
    content: Any = text
    if kind == "picture":
        link = f"data:image/png;base64,{base64.b64encode(picture(again(rng))).decode()}"
        content = [{"type": "image_url", "image_url": {"url": link}}, {"type": "text", "text": text[:100]}]
    body = {"messages": [{"role": "user", "content": content}], "stream": True, **most}
    if kind == "tool":
        body |= {"tools": [_TOOL], "tool_choice": rng.choice(["auto", "required"])}
    return chat, {"json": body}, rng.randrange(1, 20) if kind == "leave" else -1


def again(rng: random.Random) -> random.Random:
    """For one of few media: the server keeps what it encoded, up to a bound that a soak would take hours to reach."""
    return random.Random(rng.randrange(30))


def picture(rng: random.Random) -> bytes:
    file = io.BytesIO()
    size = (rng.randrange(20, 200), rng.randrange(20, 200))
    Image.new("RGB", size, (rng.randrange(256), rng.randrange(256), rng.randrange(256))).save(file, "png")
    return file.getvalue()


def sound(rng: random.Random) -> bytes:
    """Somebody who speaks, the recording that comes with cellmd, after a pause."""
    with wave.open(str(files("cellmd.demo") / "media" / "sentence.wav")) as recorded:
        parameters, frames = recorded.getparams(), recorded.readframes(recorded.getnframes())
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams(parameters)
        out.writeframes(bytes(parameters.sampwidth * rng.randrange(16_000)) + frames)
    return file.getvalue()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def own_mib(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell how much memory a process has of its own")


if __name__ == "__main__":
    sys.exit(main())
