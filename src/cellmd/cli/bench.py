"""Measure how fast a file runs on this machine.

    cellmd bench model.cellmd
    cellmd bench model.cellmd --prompt 512 16384 --tokens 64 --streams 64 --image 768x768 --audio 30

Figures are medians over --repeat runs. They stand beside what the machine could do at best, measured in the same run: a
decoding step must read every weight of the decoder, so its floor is the read bandwidth; a prompt must multiply, so its
floor is the int8 peak. Prompts are random tokens; features and encoders of media are timed apart, decoding them is not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cellmd.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the .cellmd file")
    parser.add_argument(
        "--prompt", type=int, nargs="+", default=[512], metavar="N", help="prompt lengths (default: 512)"
    )
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="decoding steps a run (default: 32)")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[], metavar="N", help="also time so many sequences at once"
    )
    parser.add_argument("--image", type=_size, metavar="HxW", help="also time a picture of this size in pixels")
    parser.add_argument("--audio", type=float, metavar="SECONDS", help="also time a sound of this length, at most 30")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs to take the median of (default: 3)")
    parser.add_argument("--backend", default="auto", help="auto, cuda, cpu or reference (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    options.add_kv_cache(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from cellmd.runtime.benchmark import benchmark

    figures = benchmark(
        args.file,
        backend=args.backend,
        threads=args.threads,
        kv_cache=args.kv_cache,
        prompts=args.prompt,
        n_tokens=args.tokens,
        repeat=args.repeat,
        streams=args.streams,
        image_size=args.image,
        audio_s=args.audio,
    )
    print(json.dumps(figures.as_dict()) if args.json else _table(figures))
    return 0


def _size(word: str) -> tuple[int, int]:
    height, separator, width = word.partition("x")
    if not (separator and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"a size such as 768x768 is wanted, found {word!r}")
    return int(height), int(width)


def _table(figures: Any) -> str:
    loaded = f"loaded in {figures.load_ms:.0f} ms, first token after {figures.first_token_ms:.0f} ms"
    lines = [f"{figures.file} on backend {figures.backend}, {loaded}"]
    if figures.ceilings is not None:
        lines.append(
            f"this machine: reads {figures.ceilings.read_bytes_per_s / 1e9:.1f} GB/s{_of_file(figures)}, "
            f"multiplies {figures.ceilings.int8_macs_per_s / 1e9:.0f} G int8 a second; "
            f"a token reads {figures.work.decode_bytes / 1e9:.3f} GB"
        )
    lines += ["", f"{'':22}{'ms':>10}{'tokens/s':>10}{'of the floor':>24}"]
    for prefill in figures.prefill:
        share = _share(prefill.peak_percent, "int8 peak")
        lines.append(f"{f'prefill {prefill.tokens}':22}{prefill.ms:>10.2f}{prefill.tokens_per_s:>10.1f}{share:>24}")
    for decode in figures.decode:
        share = _share(decode.bandwidth_percent, "bandwidth")
        lines.append(f"{f'decode at {decode.context}':22}{decode.ms:>10.2f}{decode.tokens_per_s:>10.1f}{share:>24}")
    for streams in figures.streams:
        what = f"{streams.streams} at {streams.context}"
        lines.append(f"{what:22}{streams.ms:>10.2f}{streams.tokens_per_s:>10.1f}{'all together':>24}")
    for encode in figures.encode:
        parts = f"features {encode.features_ms:.0f} ms, {encode.soft_tokens} soft tokens"
        lines.append(f"{encode.what:22}{encode.encoder_ms:>10.1f}   {parts}")
    if figures.peak_rss_bytes is not None and figures.private_bytes is not None:
        peak, private = figures.peak_rss_bytes / 1e6, figures.private_bytes / 1e6
        lines += ["", f"memory for text: {peak:.0f} MB resident at most, {private:.0f} MB of it not pages of the file"]
    if figures.device_bytes is not None:
        lines.append(f"on the device: {figures.device_bytes / 1e6:.0f} MB at most")
    return "\n".join(lines)


def _of_file(figures: Any) -> str:
    rate = figures.file_read_bytes_per_s
    return "" if rate is None else f" (the mapped file {rate / 1e9:.1f})"


def _share(percent: float | None, of: str) -> str:
    return "" if percent is None else f"{percent:.0f} % of {of}"
