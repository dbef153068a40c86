"""Threads, memory, signals: what the backend does to the machine around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cellmd.backends.cpu import create
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps


@pytest.fixture(scope="module")
def ops() -> CpuOps:
    return create(2)


def matrix_of(ops: CpuOps, m: int, k: int) -> object:
    values = np.random.default_rng(0).standard_normal((m, k), dtype=np.float32)
    return ops.matrix(encode("w", values, Coding("i4", "tile16", 128, "f16")))


def a_pass(ops: CpuOps, matrix: object, rows: int) -> None:
    ops.begin()
    x = ops.zeros((rows, 256))
    for _ in range(5):
        x = ops.rms_norm(ops.linear(x, matrix), None, 1e-6)


def test_the_same_pass_again_takes_no_more_memory(ops: CpuOps) -> None:
    matrix = matrix_of(ops, 256, 256)
    for _ in range(3):
        a_pass(ops, matrix, 64)
    held = ops._native.held_bytes
    for _ in range(10):
        a_pass(ops, matrix, 64)
        assert ops._native.held_bytes == held


def test_memory_of_a_long_pass_goes_back(ops: CpuOps) -> None:
    matrix = matrix_of(ops, 256, 256)
    a_pass(ops, matrix, 8192)
    large = ops._native.held_bytes
    for _ in range(3):
        a_pass(ops, matrix, 1)
    assert ops._native.held_bytes < large / 8


def test_a_tensor_lives_as_long_as_a_view_of_it(ops: CpuOps) -> None:
    x = ops.floats(np.arange(4096.0).reshape(64, 64))
    column, array = ops.columns(x, 3, 4), x.numpy()
    del x
    for _ in range(4):
        ops.begin()
        ops.scale_(ops.zeros((64, 64)), 1.0)
    assert ops.to_numpy(column)[:, 0].tolist() == list(range(3, 4096, 64))
    assert array[1, 1] == 65


def test_what_followed_a_matrix_may_be_gone(ops: CpuOps) -> None:
    """Threads fetch ahead what came next the last time, and that memory may have been given back since."""
    first = matrix_of(ops, 2048, 2048)
    x, gone = ops.zeros((1, 2048)), matrix_of(ops, 4096, 2048)
    for _ in range(3):
        ops.linear(x, first)
        ops.linear(x, gone)
    del gone
    for _ in range(3):
        assert not ops.to_numpy(ops.linear(x, first)).any()


def test_idle_threads_take_no_processor_time(ops: CpuOps) -> None:
    a_pass(ops, matrix_of(ops, 256, 256), 64)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.02


def test_several_python_threads_at_once(ops: CpuOps) -> None:
    matrix = matrix_of(ops, 512, 256)
    inputs = [np.random.default_rng(i).standard_normal((40, 256), dtype=np.float32) for i in range(4)]
    want = [ops.to_numpy(ops.linear(ops.floats(x), matrix)) for x in inputs]
    wrong: set[int] = set()

    def work(i: int) -> None:
        for _ in range(30):
            if not np.array_equal(ops.to_numpy(ops.linear(ops.floats(inputs[i]), matrix)), want[i]):
                wrong.add(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_computes_too(ops: CpuOps) -> None:
    matrix = matrix_of(ops, 512, 256)
    x = np.random.default_rng(1).standard_normal((40, 256), dtype=np.float32)
    want = ops.to_numpy(ops.linear(ops.floats(x), matrix))
    child = os.fork()
    if child == 0:
        same = np.array_equal(ops.to_numpy(ops.linear(ops.floats(x), matrix)), want)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


INTERRUPTED: dict[str, Callable[[], str]] = {
    "a long product": lambda: "x, m = ops.zeros((1000, 32768)), matrix(32768, 32768); go(lambda: ops.linear(x, m))",
    "long attention": lambda: "x = ops.zeros((20000, 8, 128)); go(lambda: ops.attention_bidirectional(x, x, x))",
}

PROGRAM = """
import os, signal, sys, threading, time
import numpy as np
from cellmd.backends.cpu import create
from cellmd.quant.tensor import Coding, PackedTensor
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
ops = create(2)
def matrix(m, k):
    codes, scales = np.zeros(m * k // 2, np.uint8), np.zeros(m * k // 128, np.float16)
    return ops.matrix(PackedTensor("w", (m, k), Coding("i4", "tile16", 128, "f16"), codes, scales))
def go(call):
    sent = []
    def interrupt():
        time.sleep(0.3)
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        call()
        sys.exit("it ended by itself")
    except KeyboardInterrupt:
        print(time.process_time() - sent[0])
"""


@pytest.mark.parametrize("what", INTERRUPTED)
def test_an_interrupt_is_heard(what: str) -> None:
    """Within a tenth of a second of both threads' own time, however long others keep the processor from them."""
    program = PROGRAM + INTERRUPTED[what]()
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 2 * 0.1


def test_sigint_stays_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    ops = create(2)
    ops.linear(ops.zeros((4, 64)), matrix_of(ops, 32, 64))
    assert signal.getsignal(signal.SIGINT) is before
