"""Scores against their definitions, and `cellmd eval` from the shell."""

from __future__ import annotations

import json
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellmd
from cellmd.calibration.divergence import log_softmax_
from cellmd.cli.main import main
from cellmd.errors import ArgumentError
from cellmd.evaluation.evaluate import Wanted, evaluate
from cellmd.evaluation.samples import media_samples, text_pieces
from cellmd.evaluation.scores import PieceScores, Summary, compare_logits, word_errors
from checkpoints import make_checkpoint

TEXT = "the old house stands by the river and nobody knows who built it " * 60


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def check_scores(logits: np.ndarray, against: np.ndarray, following: list[int], pool: ThreadPoolExecutor) -> None:
    """Against their definitions in float64, within the bound that `divergence` gives."""
    scores = compare_logits(logits, log_softmax_(against.copy(), pool), following, pool)
    log_q, log_p = (x - x.max(axis=1, keepdims=True) for x in (logits.astype(np.float64), against.astype(np.float64)))
    for log in (log_q, log_p):
        log -= np.log(np.exp(log).sum(axis=1, keepdims=True))
    wanted = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    largest = max(-log_p.min(), -log_q.min())
    bound = 2.0**-24 * (6 * largest + 256) * (1 + wanted + np.sqrt(2 * wanted))
    assert (np.abs(scores.divergence - wanted) <= bound).all()
    np.testing.assert_array_equal(scores.agreement, log_q.argmax(axis=1) == log_p.argmax(axis=1))
    rows = np.arange(len(following))
    for found, log in ((scores.surprise, log_q), (scores.surprise_against, log_p)):
        np.testing.assert_allclose(found, -log[rows, following], rtol=0, atol=2.0**-24 * (3 * largest + 128))


@given(st.integers(1, 70), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_scores_are_their_definitions(pool: ThreadPoolExecutor, n: int, vocab: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, against = (rng.normal(0, 5, (n, vocab)).astype(np.float32) for _ in range(2))
    check_scores(logits, against, rng.integers(0, vocab, n - 1).tolist(), pool)


@pytest.mark.parametrize("apart", [1e-3, 0.3, 5])
def test_scores_hold_for_gemmas_vocabulary(pool: ThreadPoolExecutor, apart: float) -> None:
    rng = np.random.default_rng(4)
    against = rng.normal(0, 3, (5, 262_144)).astype(np.float32)
    logits = against + rng.normal(0, apart, against.shape).astype(np.float32)
    check_scores(logits, against, [0, 1, 2, 262_143], pool)


def test_scores_do_not_depend_on_threads(pool: ThreadPoolExecutor) -> None:
    logits, against = np.random.default_rng(3).normal(0, 5, (2, 41, 300)).astype(np.float32)
    with ThreadPoolExecutor(1) as alone:
        expected = compare_logits(logits, log_softmax_(against.copy(), alone), [5] * 40, alone)
    found = compare_logits(logits, log_softmax_(against.copy(), pool), [5] * 40, pool)
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array)


def test_equal_models_do_not_differ(pool: ThreadPoolExecutor) -> None:
    logits = np.random.default_rng(0).normal(0, 5, (40, 300)).astype(np.float32)
    scores = compare_logits(logits, log_softmax_(logits.copy(), pool), [1] * 39, pool)
    assert scores.divergence.max() == 0
    assert scores.agreement.min() == 1


def test_intervals_hold_the_mean_and_narrow_with_more_pieces() -> None:
    rng = np.random.default_rng(1)

    def pieces(n: int) -> list[PieceScores]:
        level = rng.gamma(2, 0.1, n)
        return [
            PieceScores(*(rng.exponential(each, 100).astype(np.float32) for _ in range(4))) for each in level.tolist()
        ]

    widths = []
    for n in (5, 500):
        summary = Summary.of(pieces(n))
        low, high = summary.divergence_interval
        assert low <= summary.divergence <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize(
    ("heard", "said", "errors", "words"),
    [
        ("the cat sat", "The cat sat.", 0, 3),
        ("the cat", "the cat sat", 1, 3),
        ("the big cat sat", "the cat sat", 1, 3),
        ("a cat stood", "the cat sat", 2, 3),
        ("", "the cat sat", 3, 3),
        ("anything at all", "", 3, 0),
    ],
)
def test_word_errors(heard: str, said: str, errors: int, words: int) -> None:
    assert word_errors(heard, said) == (errors, words)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("eval")
    source = make_checkpoint(folder / "source")
    made = {"source": source}
    for name, options in (("float", {"recipe": "float"}), ("int4", {}), ("balanced", {"recipe": "balanced"})):
        made[name] = folder / f"{name}.cellmd"
        cellmd.convert(source, made[name], **options)  # type: ignore[arg-type]
    made["text"] = folder / "text.txt"
    made["text"].write_text(TEXT)
    return made


def shell(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["eval", *map(str, arguments), "--backend", "reference", "--against-backend", "reference"]) == 0
    return capsys.readouterr().out


def test_eval_of_files_on_text(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--against", files["float"], "--text", files["text"], "--piece", 64, "--tokens", 256, "--json", "--quiet")
    report = json.loads(shell(capsys, files["float"], files["int4"], files["balanced"], *common))
    same, int4, balanced = (each["modalities"]["text"] for each in report["files"])
    assert same["kl"]["mean"] == 0
    assert same["top1"]["mean"] == 1
    assert same["positions"] == 256
    assert int4["kl"]["mean"] > balanced["kl"]["mean"] > 0
    assert int4["kl"]["interval"][0] <= int4["kl"]["mean"] <= int4["kl"]["interval"][1]
    assert int4["perplexity_against"] == same["perplexity"]


def test_eval_against_a_checkpoint_and_on_media(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(tmp_path / "noise.png")
    with wave.open(str(tmp_path / "noise.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(rng.integers(-9000, 9000, 8000, np.int16).tobytes())
    (tmp_path / "noise.txt").write_text("nothing at all")
    table = shell(
        capsys, files["int4"], "--against", files["source"], "--sounds", tmp_path, "--pictures", tmp_path,
        "--answer", 4, "--quiet",
    )  # fmt: skip
    assert "sound" in table
    assert "picture" in table
    assert "of 3 words" in table


def test_what_cannot_be_compared_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with cellmd.load(files["int4"], backend="reference") as model:
        with pytest.raises(ArgumentError, match="nothing to compare on"):
            evaluate([model], model, Wanted())
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(ArgumentError, match="holds no text"):
            text_pieces(model.processor.tokenizer, tmp_path / "empty.txt", 2, 64, 100)
        with pytest.raises(ArgumentError, match="no sound in it"):
            media_samples("sound", tmp_path)
        other = make_checkpoint(tmp_path / "other", config_overrides={"text_config": {"vocab_size": 528}})
        cellmd.convert(other, tmp_path / "other.cellmd")
        with (
            cellmd.load(tmp_path / "other.cellmd", backend="reference") as stranger,
            pytest.raises(ArgumentError, match=r"vocabularies of \[512, 528\]"),
        ):
            evaluate([model], stranger, Wanted([files["text"]]))
