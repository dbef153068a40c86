"""What the GPU backend says where it cannot run, and what is taken then. torch is played by an impostor."""

from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cellmd import backends
from cellmd.backends import cuda
from cellmd.errors import BackendError


def impostor(cuda_version: str | None, available: bool = True, capability: tuple[int, int] = (9, 0)) -> Any:
    torch: Any = ModuleType("torch")
    torch.__version__ = "2.99"
    torch.__spec__ = ModuleSpec("torch", None)
    torch.version = SimpleNamespace(cuda=cuda_version)
    torch.cuda = SimpleNamespace(
        is_available=lambda: available,
        get_device_capability=lambda: capability,
        get_device_name=lambda: "A Card",
    )
    return torch


@pytest.mark.parametrize(
    ("torch", "says"),
    [
        (None, r"needs torch, which cannot be imported .*pip install 'cellmd\[cuda\]'"),
        (impostor(None), "torch with CUDA, found 2.99 without"),
        (impostor("13.0", available=False), r"no usable NVIDIA GPU; install or update the driver \(CUDA 13.0"),
        (impostor("13.0", capability=(7, 5)), "compute capability 8.0 or higher; A Card has 7.5"),
    ],
    ids=["no torch", "no cuda", "no driver", "too old"],
)
def test_each_thing_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, torch: Any, says: str) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(BackendError, match=says):
        backends.create("cuda")


def test_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability in [(8, 0), (8, 9), (9, 0), (12, 0)]:
        monkeypatch.setitem(sys.modules, "torch", impostor("13.0", capability=capability))
        cuda.check()


def test_a_wrong_place_for_tables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.TABLES, "moon")
    with pytest.raises(BackendError, match=r"CELLMD_CUDA_TABLES must be host or device, found 'moon'"):
        backends.create("cuda")


def test_auto_goes_on_without_a_gpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch", impostor("13.0", available=False))
    monkeypatch.setattr(cuda, "likely", lambda: True)
    assert backends.installed()[0] == "cuda"
    with caplog.at_level(logging.WARNING, logger="cellmd.backends"):
        taken = backends.create("auto")
    assert taken.name == backends.installed()[1]
    (record,) = caplog.records
    assert "finds no usable NVIDIA GPU" in record.message
    assert f"going on with backend '{taken.name}'" in record.message


def test_torch_is_not_even_looked_for_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "_DEVICE_FILES", ("/no/such/file",))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "cuda" not in backends.installed()
    assert backends.create("auto").name == backends.installed()[0]
    assert not caplog.records
