"""What was computed survives the scheduler: beginnings of prompts and encoded media, on every backend."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import cellmd
import model_cases
from cellmd.errors import ArgumentError
from cellmd.runtime import scheduler as scheduling
from cellmd.runtime.result import Result
from cellmd.runtime.scheduler import Scheduler
from live_server import free_port, until

OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6}


@pytest.fixture(params=["cpu", "reference"], scope="module")
def model(request: pytest.FixtureRequest, path: Path) -> Iterator[cellmd.Model]:
    with cellmd.load(path, backend=request.param, threads=1, context=2048) as model:
        yield model


def answer(scheduler: Scheduler, model: cellmd.Model, prompt: cellmd.Prompt) -> Result:
    return Result.of(list(scheduler.stream(model.request(prompt, **OPTIONS))))


def longer(prompt: cellmd.Prompt, *more: int) -> cellmd.Prompt:
    return cellmd.Prompt((*prompt.token_ids, *more), prompt.media)


def after(model: cellmd.Model, folder: Path, prompt: cellmd.Prompt, **options: Any) -> Result:
    """The answer of a scheduler that was begun anew."""
    scheduler = model.scheduler(slots=2, cache_dir=folder, **options)
    try:
        return answer(scheduler, model, prompt)
    finally:
        scheduler.close()


@pytest.mark.parametrize("n", [60, 700])
def test_a_beginning_survives(model: cellmd.Model, tmp_path: Path, n: int) -> None:
    """Also when rings have gone round (700 is more than window and chunk together)."""
    prompt = model_cases.text_prompt(n)
    first = after(model, tmp_path, prompt)
    assert first.usage.cached_tokens == 0
    asked = longer(prompt, *first.token_ids, 120, 121, 122)
    second = after(model, tmp_path, asked)
    assert second.usage.cached_tokens >= n
    assert second.token_ids == model.generate(asked, **OPTIONS).token_ids
    third = after(model, tmp_path, longer(prompt, 130, 131))  # the prompt is shared, what followed is not
    assert third.usage.cached_tokens == n
    assert third.token_ids == model.generate(longer(prompt, 130, 131), **OPTIONS).token_ids


def test_media_survive_by_content(model: cellmd.Model, tmp_path: Path) -> None:
    prompt = model_cases.media_prompt(model, 5)
    first = after(model, tmp_path, prompt)
    assert first.timings.encoder_ms
    other = cellmd.Prompt(
        (2, 140, *prompt.token_ids[1:]),
        tuple(type(span)(span.kind, span.start + 1, span.features) for span in prompt.media),
    )
    second = after(model, tmp_path, other)
    assert second.usage.cached_tokens == 0  # another beginning, the same media
    assert second.timings.encoder_ms == {}
    assert second.token_ids == model.generate(other, **OPTIONS).token_ids
    third = after(model, tmp_path, longer(prompt, 150))
    assert third.usage.cached_tokens >= len(prompt) - 1
    assert third.token_ids == model.generate(longer(prompt, 150), **OPTIONS).token_ids


def test_several_of_one_beginning_read_it_once(model: cellmd.Model, tmp_path: Path) -> None:
    prompt = model_cases.text_prompt(400)
    after(model, tmp_path, prompt)
    scheduler = model.scheduler(slots=4, cache_dir=tmp_path)
    asked = [longer(prompt, 120 + i, 130) for i in range(4)] + [
        cellmd.Prompt((*prompt.token_ids[:200], 140 + i, 141)) for i in range(3)
    ]
    got: list[list[Any]] = [[] for _ in asked]
    for prompt_, pieces in zip(asked, got, strict=True):
        scheduler.submit(model.request(prompt_, **OPTIONS), pieces.append)
    until(lambda: all(pieces and pieces[-1].finish_reason for pieces in got))
    scheduler.close()
    for prompt_, pieces in zip(asked, got, strict=True):
        assert Result.of(pieces).token_ids == model.generate(prompt_, **OPTIONS).token_ids
    assert [Result.of(pieces).usage.cached_tokens >= 400 for pieces in got[:4]] == [True] * 4
    assert scheduler.counts.failed == 0


def test_what_is_pushed_out_of_a_slot_comes_back(model: cellmd.Model, tmp_path: Path) -> None:
    scheduler = model.scheduler(slots=1, cache_dir=tmp_path)
    prompts = [model_cases.text_prompt(300, seed=i) for i in range(3)]
    for prompt in prompts:
        assert answer(scheduler, model, prompt).usage.cached_tokens == 0
    again = answer(scheduler, model, longer(prompts[0], 120))
    scheduler.close()
    assert again.usage.cached_tokens == 300
    assert again.token_ids == model.generate(longer(prompts[0], 120), **OPTIONS).token_ids


def test_an_idle_scheduler_keeps_what_it_has(
    model: cellmd.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is there after a crash as well."""
    monkeypatch.setattr(scheduling, "_IDLE_SECONDS", 0.05)
    scheduler = model.scheduler(slots=2, cache_dir=tmp_path)
    answer(scheduler, model, model_cases.text_prompt(100))
    until(lambda: len(list(tmp_path.glob("*.prefix"))) == 1)
    steps = scheduler.counts.steps
    answer(scheduler, model, model_cases.text_prompt(100))
    assert scheduler.counts.steps > steps
    scheduler.close()


def test_damaged_and_foreign_files_change_nothing(
    model: cellmd.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = model_cases.media_prompt(model, 6)
    after(model, tmp_path, prompt)
    kept = tmp_path / "kept"
    (files := [file for file in tmp_path.iterdir() if file.is_file()]).sort()
    kept.mkdir()
    for file in files:
        shutil.copy(file, kept)
    alone = model.generate(longer(prompt, 150), **OPTIONS).token_ids
    for damage in ("cut", "turned", "exchanged", "other"):
        for file in tmp_path.glob("*.*"):
            file.unlink()
        for file in files:
            content = (kept / file.name).read_bytes()
            if damage == "cut":
                content = content[: len(content) // 2]
            elif damage == "turned":
                content = content[:-1000] + bytes(b ^ 0x55 for b in content[-1000:])
            elif damage == "exchanged":
                content = (kept / files[files.index(file) - 1].name).read_bytes()
            else:
                content = b"not of this kind"
            file.write_bytes(content)
            file.chmod(0o600)
        scheduler = model.scheduler(slots=1, cache_dir=tmp_path)
        result = answer(scheduler, model, longer(prompt, 150))
        scheduler.close()
        assert result.token_ids == alone
        assert result.usage.cached_tokens == 0
        assert scheduler.counts.failed == 0
    assert "is not used" in caplog.text


def test_keys_that_lie_are_not_believed(model: cellmd.Model, tmp_path: Path) -> None:
    """A file with a right checksum, but more positions than this cache has, or none of its layers."""
    prompt = model_cases.text_prompt(300)
    scheduler = model.scheduler(slots=1, cache_dir=tmp_path)
    scheduler.close()
    disk = scheduler._saved._disk  # type: ignore[union-attr]
    keys = np.asarray(prompt.token_ids, np.int64)
    for n_written, layers in ((300, []), (5000, [np.zeros(10, np.uint8)]), (300, [np.zeros(8, np.uint8)] * 3)):
        for file in tmp_path.iterdir():
            file.unlink()
        disk.write(disk.name("prefix", keys.tobytes()), {"n_written": n_written}, [keys.view(np.uint8), *layers])
        scheduler = model.scheduler(slots=1, cache_dir=tmp_path)
        result = answer(scheduler, model, longer(prompt, 120))
        scheduler.close()
        assert result.usage.cached_tokens == 0
        assert scheduler.counts.failed == 0


def test_another_context_or_file_finds_only_what_fits(path: Path, tmp_path: Path) -> None:
    prompt = model_cases.text_prompt(300)
    with cellmd.load(path, threads=1, context=2048) as model:
        after(model, tmp_path, prompt)
    for context, cached in ((1024, 300), (4096, 300)):
        with cellmd.load(path, threads=1, context=context) as model:
            result = after(model, tmp_path, longer(prompt, 120))
            assert result.usage.cached_tokens == cached
            assert result.token_ids == model.generate(longer(prompt, 120), **OPTIONS).token_ids
    other = model_cases.build(tmp_path / "other", "tiny", "aggressive", seed=3)
    with cellmd.load(other, threads=1, context=2048) as model:
        assert after(model, tmp_path, longer(prompt, 120)).usage.cached_tokens == 0


def test_what_was_found_may_be_replaced_by_what_is_saved(model: cellmd.Model, tmp_path: Path) -> None:
    """A prompt goes on from a file while the slot that it takes is saved, and the file is forgotten for that."""
    prompt = model_cases.text_prompt(300)
    after(model, tmp_path, prompt)
    scheduler = model.scheduler(slots=1, cache_dir=tmp_path)
    saved: Any = scheduler._saved
    save = saved.save

    def forgetful(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        saved._entries.clear()

    saved.save = forgetful
    answer(scheduler, model, model_cases.text_prompt(100, seed=5))
    result = answer(scheduler, model, longer(prompt, 120))
    scheduler.close()
    assert result.usage.cached_tokens == 300
    assert result.token_ids == model.generate(longer(prompt, 120), **OPTIONS).token_ids


def test_a_request_that_cannot_be_begun_fails_alone(model: cellmd.Model, tmp_path: Path) -> None:
    scheduler = model.scheduler(slots=1, cache_dir=tmp_path)
    saved: Any = scheduler._saved
    best, saved.best = saved.best, None
    with pytest.raises(cellmd.BackendError):
        answer(scheduler, model, model_cases.text_prompt(100))
    saved.best = best
    assert answer(scheduler, model, model_cases.text_prompt(100)).usage.completion_tokens
    assert scheduler.counts.failed == 1
    scheduler.close()


def test_its_size_is_bounded(model: cellmd.Model, tmp_path: Path) -> None:
    scheduler = model.scheduler(slots=1, cache_dir=tmp_path, cache_bytes=2_000_000)
    for i in range(20):
        answer(scheduler, model, model_cases.text_prompt(300, seed=i))
        assert len(scheduler._saved._entries) <= len(list(tmp_path.iterdir())) + 3  # type: ignore[union-attr]
    scheduler.close()
    assert 0 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2_000_000


def test_a_folder_that_cannot_be_used_is_said(model: cellmd.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match="no folder"):
        model.scheduler(cache_dir=tmp_path / "file")
    assert model.generate("hello", max_tokens=1)  # the model is free again


def test_closing_ends_loading(model: cellmd.Model, tmp_path: Path) -> None:
    prompt = model_cases.text_prompt(300)
    after(model, tmp_path, prompt)
    scheduler = model.scheduler(slots=1, cache_dir=tmp_path)
    for _ in range(3):
        scheduler.submit(model.request(longer(prompt, 120), **OPTIONS), lambda piece: None).cancel()
    scheduler.close()
    assert scheduler.counts.running == 0


def test_loading_is_logged_nowhere_when_all_is_well(
    model: cellmd.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "cellmd"):
        after(model, tmp_path, model_cases.text_prompt(100))
        after(model, tmp_path, model_cases.text_prompt(100))
    assert caplog.text == ""


def test_a_server_that_was_started_again_knows_the_beginning(path: Path, tmp_path: Path) -> None:
    question = "what is this " * 20
    asked = {"messages": [{"role": "user", "content": question}], "max_completion_tokens": 8, "temperature": 0}
    seen = []
    for folder in (tmp_path / "cache", tmp_path / "cache", None):
        port = free_port()
        command = [sys.executable, "-m", "cellmd.cli.main", "serve", str(path), "--port", str(port), "--threads", "1"]
        command += ["--context", "2048", *([] if folder is None else ["--cache-dir", str(folder)])]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            url = f"http://127.0.0.1:{port}"
            until(lambda url=url: is_up(url), 60)  # type: ignore[misc]
            seen.append(httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).json())
            process.terminate()
            assert process.wait(30) == 0
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in seen]
    assert cached == [0, seen[0]["usage"]["prompt_tokens"] - 1, 0]
    assert len({answer["choices"][0]["message"]["content"] for answer in seen}) == 1


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False
