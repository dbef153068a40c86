"""Is a long recording written down whole, and nothing beside it? Speech, silence and music whose truth is known.

    python bench/recording.py demo.cellmd                # 62 minutes
    python bench/recording.py demo.cellmd --minutes 3

The recording is put together from the sentences that come with cellmd and its tests, spoken by synthetic voices that
the demo model has learnt, each at a tempo, a loudness and with a hiss of its own; the demo model hears one sentence at
a time, so the pauses are long. Between them is silence, or music and noise as loud as the speech.

`cellmd transcribe` writes it down, as a program of its own; then again, killed (SIGKILL) after a third of the segments,
and once more, to go on from there. Held to: every sentence is one segment, no segment lies where nobody speaks, times
to half a second, words wrong at most 5 %, the killed run ends with the same transcript and does not hear again what it
had, and its own memory is bounded by the recording's. Ends in one line of JSON, and exit code 1 if any of it is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from cellmd.evaluation.scores import word_errors
from cellmd.processors.decode_audio import decode_audio

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.append(str(TESTS))
import music  # noqa: E402

_RATE_HZ = music.RATE_HZ
_MOST_WRONG = 0.05  # what the demo model is held to with these voices: examples/demo_model/MODEL_CARD.md
_MOST_SECONDS_OFF = 0.5  # the margin that is kept around speech, 0.22 s, and the detector's own delay
_MOST_BESIDE_MIB = 128.0  # of its own memory, beside the recording, which it holds twice while it is decoded
_MARK = "KEPT "


@dataclass(frozen=True)
class Said:
    """A sentence and where in the recording it is spoken."""

    start_s: float
    stop_s: float
    text: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=62.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording, said = write_recording(Path(folder) / "talk.wav", args.minutes, random.Random(args.seed))
        whole = Transcribing(args, recording, Path(folder) / "whole")
        while whole.goes_on():
            time.sleep(0.2)
        killed = Transcribing(args, recording, Path(folder) / "killed")
        while killed.goes_on() and killed.n_done < len(said) // 3:
            time.sleep(0.02)
        killed.process.kill()
        killed.process.wait()
        n_kept = killed.mark()
        resumed = Transcribing(args, recording, Path(folder) / "killed")
        while resumed.goes_on():
            time.sleep(0.2)
        again = [{**one, "text": one["text"].removeprefix(_MARK)} for one in resumed.segments()]
        recording_mib = 60 * args.minutes * _RATE_HZ * 4 / (1 << 20)
        n_marked = sum(one["text"].startswith(_MARK) for one in resumed.segments())
        result = {
            "file": args.file.name,
            "minutes": args.minutes,
            "speech_minutes": round(sum(one.stop_s - one.start_s for one in said) / 60, 1),
            **compared(said, whole.segments()),
            "times_real_time": round(60 * args.minutes / whole.seconds, 1),
            "own_mib": round(max(whole.own_mib)),
            "recording_mib": round(recording_mib),
            "killed_after": n_kept,
            "not_heard_again": n_marked,
            "same_when_resumed": again == whole.segments(),
        }
    print(json.dumps(result))
    right = result["found"] == result["sentences"] and result["invented"] == 0
    right = right and result["words_wrong"] <= _MOST_WRONG and result["seconds_off"] <= _MOST_SECONDS_OFF
    right = right and result["own_mib"] <= 2 * result["recording_mib"] + _MOST_BESIDE_MIB
    right = right and result["same_when_resumed"] and result["not_heard_again"] == n_kept > 0
    return 0 if right else 1


# ---- the recording ------------------------------------------------------------------------------------------


def write_recording(path: Path, minutes: float, rng: random.Random) -> tuple[Path, list[Said]]:
    """A WAV file, piece by piece, and what is said in it."""
    said: list[Said] = []
    n_written, n = 0, round(60 * minutes * _RATE_HZ)
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, _RATE_HZ, 0, "NONE", ""))
        for text, sound in passages(rng):
            if n_written + len(sound) > n:
                break
            if text:
                said.append(Said(n_written / _RATE_HZ, (n_written + len(sound)) / _RATE_HZ, text))
            out.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
            n_written += len(sound)
        out.writeframes(bytes(2 * (n - n_written)))
    return path, said


def passages(rng: random.Random) -> Iterator[tuple[str, np.ndarray]]:
    """Sounds without end, and what is said in them: a few sentences with pauses, then something else for a while."""
    sentences = list(voices())
    noises = list(music.SOUNDS.values())
    noise = np.random.default_rng(rng.randrange(1 << 30))
    while True:
        for _ in range(rng.randrange(2, 6)):
            yield "", silence(rng.uniform(3, 7))
            text, sound = rng.choice(sentences)
            yield text, varied(sound, rng, noise)
        yield "", silence(rng.uniform(3, 8))
        seconds = rng.uniform(15, 60)
        kind = rng.randrange(len(noises) + 2)
        if kind < len(noises):
            yield "", loudness(noises[kind](seconds, noise), rng)
        elif kind == len(noises):
            yield "", loudness(noise.standard_normal(round(seconds * _RATE_HZ)), rng)
        else:
            yield "", silence(seconds)


def voices() -> Iterator[tuple[str, np.ndarray]]:
    """Sentences and how they are spoken, float32 (n,), without the silence around them."""
    demo = files("cellmd.demo") / "media"
    truth = json.loads((demo / "truth.json").read_text())["sentence.wav"]["answer"]
    yield truth, trimmed(decode_audio((demo / "sentence.wav").read_bytes()))
    recordings = TESTS / "demo_model" / "recordings"
    for name, entry in json.loads((recordings / "sentences.json").read_text()).items():
        if name.startswith("trained"):
            yield entry["text"], trimmed(decode_audio((recordings / name).read_bytes()))


def trimmed(sound: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1]


def varied(sound: np.ndarray, rng: random.Random, noise: np.random.Generator) -> np.ndarray:
    places = np.arange(0, len(sound) - 1, rng.uniform(0.93, 1.08))
    faster = np.interp(places, np.arange(len(sound)), sound)
    return loudness(faster, rng) + rng.uniform(0, 0.002) * noise.standard_normal(len(faster))


def loudness(sound: np.ndarray, rng: random.Random) -> np.ndarray:
    return sound * (rng.uniform(0.15, 0.7) / np.abs(sound).max())


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * _RATE_HZ))


# ---- the command --------------------------------------------------------------------------------------------


class Transcribing:
    """`cellmd transcribe` at work. own_mib: of its own memory, now and then."""

    def __init__(self, args: argparse.Namespace, recording: Path, output: Path) -> None:
        self._target = output / f"{recording.stem}.json"
        self._journal = output / f"{recording.stem}.json.part"
        command = [sys.executable, "-m", "cellmd.cli.main", "transcribe", str(recording), "--model", str(args.file)]
        command += ["--format", "json", "--output", str(output), "--context", "1024"]
        command += [] if args.threads is None else ["--threads", str(args.threads)]
        self._began = time.perf_counter()
        self.process = subprocess.Popen(command)
        self.seconds = 0.0
        self.own_mib: list[float] = []

    @property
    def n_done(self) -> int:
        return max(0, len(self._journal.read_text().splitlines()) - 1) if self._journal.exists() else 0

    def goes_on(self) -> bool:
        if self.process.poll() is None:
            self.own_mib.append(own_mib(self.process.pid))
            return True
        self.seconds = time.perf_counter() - self._began
        if self.process.returncode:
            raise SystemExit(f"cellmd transcribe ended with {self.process.returncode}")
        return False

    def mark(self) -> int:
        """Mark the segments that a killed run has finished, so that it shows whether they are heard again. How many."""
        lines = self._journal.read_text().splitlines()
        finished = [json.loads(line) for line in lines[1:]]
        marked = [json.dumps({**one, "text": _MARK + one["text"]}) for one in finished]
        self._journal.write_text("\n".join([lines[0], *marked]) + "\n")
        return len(marked)

    def segments(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._target.read_text())["segments"]
        return found


def own_mib(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0.0)


# ---- what it is held to -------------------------------------------------------------------------------------


def compared(said: list[Said], segments: list[dict[str, Any]]) -> dict[str, Any]:
    wrong = words = found = 0
    seconds_off = 0.0
    left = list(segments)
    for sentence in said:
        own = [one for one in left if one["start_s"] < sentence.stop_s and one["stop_s"] > sentence.start_s]
        left = [one for one in left if one not in own]
        errors, n_words = word_errors(" ".join(one["text"] for one in own), sentence.text)
        wrong, words, found = wrong + errors, words + n_words, found + (len(own) == 1)
        for one in own:
            seconds_off = max(seconds_off, abs(one["start_s"] - sentence.start_s), abs(one["stop_s"] - sentence.stop_s))
    wrong += sum(word_errors(one["text"], "")[0] for one in left)
    return {
        "sentences": len(said),
        "found": found,
        "invented": len(left),
        "words": words,
        "words_wrong": round(wrong / words, 4),
        "seconds_off": round(seconds_off, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
