"""Compiles the kernels at the shapes of Gemma 4 E2B for a GPU that need not be there: run by a test, as a process of
its own, since in the tests' the kernels are interpreted. Arguments: compute capability (90), shared memory in bytes."""

from __future__ import annotations

import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from cellmd.backends.cuda.kernels import attention, common, linear, lookup, norms, repack, top_k, towers
from cellmd.backends.cuda.kernels.layout import n_pieces
from cellmd.backends.cuda.weights import DeviceMatrix, DeviceTable

D, WINDOW = 1536, 512


class Absent:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def matrix(n_rows: int, n_columns: int, bits: int, group: int) -> DeviceMatrix:
    codes = torch.empty((n_rows, n_columns if bits == 8 else 64 * n_pieces(n_columns)), dtype=torch.int8)
    return DeviceMatrix((n_rows, n_columns), bits, codes, torch.empty((n_rows, 1), dtype=torch.float16), group)


def products(n_rows: int, bits: int, group: int) -> None:
    x, norm = torch.empty(n_rows, D), torch.empty(D)
    before: dict[str, Any] = {}
    if n_rows == 1:
        before = {"norm_weight": norm, "residual": linear.Residual(x, norm, x)}
    linear.linear(x, [matrix(n, D, bits, group) for n in (2048, 256, 256)], **before)
    linear.linear(x, [matrix(1 << 16, D, bits, group)], cap=30.0, **before)
    linear.geglu(x, matrix(12_288, D, bits, group), matrix(12_288, D, bits, group), **before)
    linear.geglu(x, matrix(256, D, bits, group), torch.empty(n_rows, 256))
    for n_columns in (256, 2048, 4096, 12_288):
        linear.open_linear(torch.empty((n_rows, n_columns), dtype=torch.bfloat16), matrix(D, n_columns, bits, group))


def rest(n_rows: int) -> None:
    integers = torch.empty(n_rows, dtype=torch.int32)
    x, weight = torch.empty(n_rows, D), torch.empty(D)
    norms.rms_norm(x, weight, 1e-6)
    norms.add_norm_(x, x, weight, 1e-6, next_weight=weight)
    for head_dim, window in ((256, WINDOW), (512, 0)):
        q, kv = torch.empty(n_rows, 8, head_dim), torch.empty(n_rows, 1, head_dim)
        cache = torch.empty((n_rows, 1024, 1, head_dim), dtype=torch.bfloat16)
        turns = torch.empty(n_rows, 2, 64)
        where = (cache, cache, 1024), integers, integers
        norms.turn_and_append_(q, kv, kv, q[0, 0], q[0, 0], 1e-6, turns, *where)
        raw = attention.Raw(q[0, 0], turns, 1e-6, kv, kv, q[0, 0])
        at = cache, cache, 1024, integers, integers, window
        joined = not linear.joins(n_rows, head_dim)
        shares = attention.decode_attention(q, *at, raw=raw, joined=joined, shares=4)
        linear.open_linear(shares.view(n_rows, -1) if joined else shares, matrix(D, 8 * head_dim, 4, 128))
        for attend in (attention.decode_attention, attention.prefill_attention):
            attend(q, cache, cache, 1024, integers, integers, window, dtype=torch.bfloat16)
    table = DeviceTable(
        (8, 8960), 4, torch.empty((8, 4480), dtype=torch.uint8), torch.empty((8, 35), dtype=torch.int8), x[0], 256
    )
    lookup.embed(table, integers, 1.0)
    lookup.embed(matrix(8, D, 4, 128), integers, 1.0)
    lookup.per_layer_inputs(torch.empty(n_rows, 8960), 1.0, weight[:256], 1e-6, table, integers, 1.0, 0, 1.0)
    lookup.decoded(matrix(2048, D, 4, 128))
    repack.repack_int4(torch.empty(D * D // 2, dtype=torch.uint8), torch.empty((D, D // 2), dtype=torch.uint8), D)
    top_k.top_k(torch.empty(n_rows, 1 << 15), 64)


def many() -> None:
    """The towers, and many rows of a prompt."""
    towers.clamp(torch.empty(300, D), -1.0, 1.0, torch.bfloat16)
    towers.geglu_into(torch.empty((300, D), dtype=torch.bfloat16), torch.empty(300, D), torch.empty(300, 2 * D)[:, D:])
    q, turns = torch.empty(300, 12, 64), torch.empty(300, 2, 16)
    towers.norm_heads(q, None, 1e-6)
    towers.norm_turn_2d(q, q[0, 0], 1e-6, turns, turns, torch.bfloat16)
    q = torch.empty(300, 8, 128)
    towers.relative_attention(q, q, q, q[:13], past=12, future=0, cap=50.0, dtype=torch.bfloat16)
    towers.depthwise_conv1d(torch.empty(300, 1024), torch.empty(1024, 5))


def main(capability: int, room: int) -> None:
    driver.set_active(Absent(capability))

    def compile_only(kernel: Any, grid: Any, device: Any, warps: int, *args: Any, **constants: Any) -> None:
        early = capability >= 90
        options = {"launch_pdl": True} if early else {}
        compiled = kernel.warmup(*args, OVERLAPS=early, num_warps=warps, grid=grid, **constants, **options)
        if compiled.metadata.shared > room:
            sys.exit(f"{kernel.fn.__name__} {constants}: {compiled.metadata.shared} bytes of shared memory")

    common.shared_memory = lambda device: room
    for module in (attention, linear, lookup, norms, repack, top_k, towers):
        module.launch = compile_only
    lookup.launch_first = compile_only
    for n_rows in (1, 8, 64):
        products(n_rows, 4, 128)
    products(1, 4, 32)
    products(64, 4, 32)
    products(1, 8, 32)
    products(64, 8, 32)
    rest(1)
    rest(8)
    many()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
