"""From process start to the first token of an answer: imports, tokenizer, mapping and prefill included.

    python bench/first_token.py model.cellmd [--tokens 512] [--repeat 5]

Starts `cellmd run` as a user would, waits for the first byte of its answer, and prints one JSON line: medians over the
runs, after one that warms the page cache. It stands beside `import cellmd` alone and the interpreter alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SENTENCE = "The harbour was quiet and the boats lay still under a pale sky. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--tokens", type=int, default=512, help="about how long the prompt is (default: 512)")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    n_sentences = max(1, round((args.tokens - 12) / 15))  # 14 words and a full stop; the turn's markers
    prompt = (SENTENCE * n_sentences).encode()
    answer(args.file, prompt)
    runs = [answer(args.file, prompt) for _ in range(args.repeat)]
    print(
        json.dumps(
            {
                "prompt_tokens": prompt_tokens(args.file, prompt),
                "first_token_s": round(statistics.median(seconds for seconds, _ in runs), 3),
                "peak_rss_mb": round(statistics.median(rss for _, rss in runs) / 1e6, 1),
                "import_cellmd_s": round(statistics.median(python("import cellmd") for _ in range(args.repeat)), 3),
                "python_s": round(statistics.median(python("pass") for _ in range(args.repeat)), 3),
            }
        )
    )


def command(file: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "cellmd.cli.main", "run", file, "-", "--temperature", "0", *options]


def answer(file: str, prompt: bytes) -> tuple[float, int]:
    """Seconds to the first byte of an answer of one token, and the peak resident bytes of the process."""
    began = time.perf_counter()
    process = subprocess.Popen(command(file, "--tokens", "1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(prompt)
    process.stdin.close()
    process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit("cellmd run failed; see above")
    return seconds, usage.ru_maxrss * 1024


def prompt_tokens(file: str, prompt: bytes) -> int:
    run = subprocess.run(command(file, "--tokens", "1", "--json"), input=prompt, capture_output=True, check=True)
    return int(json.loads(run.stdout)["usage"]["prompt_tokens"])


def python(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
