"""The compiled tokenizer against the `tokenizers` library: loading, memory, a prompt, a long text, a hostile one.

    python bench/tokenizer.py --tokenizer tokenizer.json [--text FILE] [--repeat 5]

Every figure is the median over fresh processes, imports not counted, the files in the page cache. Times are CPU time,
which neighbours on the machine disturb less. Private memory is what the process has for itself (RssAnon), so the mapped
table does not count. The text, if none is given, is Python's own `pydoc_data/topics.py`. Ends in one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

PROMPT_TOKENS = 512
Measurement = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--text", type=Path, help="a text of about a megabyte")
    parser.add_argument("--repeat", type=int, default=5, help="processes to take the median of")
    arguments = parser.parse_args()
    text = (arguments.text or default_text()).read_text(errors="replace")
    texts = {"long": text, "hostile": "etaoinshrdlu" * (len(text) // 12)}

    from tokenizers import Tokenizer

    from cellmd.vocabulary import Vocabulary, compile_vocabulary

    started = time.process_time()
    table = compile_vocabulary(arguments.tokenizer.read_bytes())
    result: dict[str, Any] = {"compile_s": time.process_time() - started, "table_bytes": len(table)}
    library, compiled = Tokenizer.from_file(str(arguments.tokenizer)), Vocabulary.open(table)
    ids = library.encode(text, add_special_tokens=False).ids
    prompt = library.decode(ids[:PROMPT_TOKENS])
    result["same"] = all(compiled.encode(t) == library.encode(t, add_special_tokens=False).ids for t in texts.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.bin"
        path.write_bytes(table)
        texts["prompt"] = prompt
        result["compiled"] = medians(measure_compiled, path, texts, arguments.repeat)
        result["library"] = medians(measure_library, arguments.tokenizer, texts, arguments.repeat)
    result["characters"] = {name: len(t) for name, t in texts.items()}
    print(json.dumps(result))


def default_text() -> Path:
    import pydoc_data.topics

    return Path(pydoc_data.topics.__file__)


def medians(measure: Callable[..., Measurement], path: Path, texts: dict[str, str], repeat: int) -> Measurement:
    runs = []
    for _ in range(repeat):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            runs.append(fresh.submit(measure, path, texts).result())
    return {key: round(median(run[key] for run in runs), 2) for key in runs[0]}


def measure_compiled(path: Path, texts: dict[str, str]) -> Measurement:
    from cellmd.vocabulary import Vocabulary

    def load() -> Callable[[str], list[int]]:
        with path.open("rb") as file:
            return Vocabulary.open(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).encode

    return measured(load, texts)


def measure_library(path: Path, texts: dict[str, str]) -> Measurement:
    from tokenizers import Tokenizer

    def load() -> Callable[[str], list[int]]:
        tokenizer = Tokenizer.from_file(str(path))
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    return measured(load, texts)


def measured(load: Callable[[], Callable[[str], list[int]]], texts: dict[str, str]) -> Measurement:
    """load_ms; prompt_ms, the first prompt after loading; private_mb, what both added; then the other texts."""
    before, started = private_mb(), time.process_time()
    encode = load()
    result = {"load_ms": 1e3 * (time.process_time() - started)}
    for name in ("prompt", *(name for name in texts if name != "prompt")):
        started = time.process_time()
        encode(texts[name])
        result[f"{name}_ms"] = 1e3 * (time.process_time() - started)
        if name == "prompt":
            result["private_mb"] = private_mb() - before
    return result


def private_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
