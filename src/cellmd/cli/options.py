"""Options that several commands share, and how they become arguments of the API."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellmd.errors import ArgumentError


class _Medium(argparse.Action):
    """Collects --image, --audio and --video in one list, so that their order on the command line is kept."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        media = list(getattr(namespace, self.dest) or [])
        kind = (option_string or "").lstrip("-")
        namespace.media = [*media, {"type": kind, kind: str(values)}]


def add_media(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("media", "repeatable; the model meets them in the order given, then the prompt")
    for kind, formats in (
        ("image", "jpeg, png, webp, gif, ..."),
        ("audio", "wav, mp3, flac, ogg, m4a, ...; cut into pieces of 30 s"),
        ("video", "mp4, mkv, webm, avi, ..."),
    ):
        group.add_argument(f"--{kind}", dest="media", action=_Medium, type=Path, metavar="FILE", help=formats)
    group.add_argument(
        "--image-tokens",
        type=int,
        choices=(70, 140, 280, 560, 1120),
        help="soft tokens a picture may take: more see more and cost more (default: the file's)",
    )
    group.add_argument("--frames", type=int, metavar="N", help="frames taken from a film, evenly (default: the file's)")
    group.add_argument("--fps", type=float, metavar="F", help="frames a second of film, instead of --frames")
    group.add_argument("--video-sound", action="store_true", help="let the model hear a film's sound as well")


def add_sampling(parser: argparse.ArgumentParser, tokens: int) -> None:
    group = parser.add_argument_group("answer", "defaults come from the file's generation config")
    group.add_argument("--tokens", type=int, default=tokens, metavar="N", help="longest answer (default: %(default)s)")
    group.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    group.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    group.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest")
    group.add_argument("--top-p", type=float, metavar="P", help="sample among the likeliest that add up to P")
    group.add_argument("--min-p", type=float, metavar="P", help="drop tokens below P times the likeliest")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repetition")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before TEXT; repeatable")
    group.add_argument("--thinking", action="store_true", help="let the model reason first")


def add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--backend", default="auto", help="auto, cuda, cpu or reference (default: %(default)s)")
    group.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    group.add_argument("--context", type=int, metavar="N", help="longest conversation in tokens (default: the model's)")
    add_kv_cache(group)


def add_kv_cache(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--kv-cache",
        choices=("f16", "f32", "i8"),
        help="how the backend cpu keeps keys and values: i8 in half of f16's memory (default: f16)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")


def load_model(args: argparse.Namespace, path: Path) -> Any:
    import cellmd

    return cellmd.load(path, backend=args.backend, threads=args.threads, context=args.context, kv_cache=args.kv_cache)


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `generate` and `stream`; what was not given is left to the file's defaults."""
    return {
        "max_tokens": args.tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "seed": args.seed,
        "stop": args.stop or (),
        "thinking": args.thinking,
    }


def media_arguments(args: argparse.Namespace) -> dict[str, Any]:
    if args.frames is not None and args.fps is not None:
        raise ArgumentError("--frames and --fps exclude each other")
    return {
        "image_tokens": args.image_tokens,
        "video_frames": args.frames,
        "video_fps": args.fps,
        "video_audio": args.video_sound,
    }


def messages(prompt: str, media: Sequence[dict[str, str]] | None, system: str | None) -> list[dict[str, Any]]:
    """One user message: the media in order, then the prompt; a prompt of "-" is read from standard input."""
    text = sys.stdin.read() if prompt == "-" else prompt
    content = [*(media or []), {"type": "text", "text": text}]
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": content}]
