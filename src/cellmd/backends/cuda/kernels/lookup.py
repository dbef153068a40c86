"""Rows of tables and matrices, decoded; the inputs of the layers from them; whole matrices as bfloat16.

A table may lie in pinned host memory: its rows then come over the bus as they are read, and nothing else of it does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import (
    ceil_power_of_2,
    launch,
    launch_first,
    let_next_start,
    nibbles,
    rounded,
    wait_for_inputs,
)
from cellmd.backends.cuda.kernels.layout import n_pieces
from cellmd.backends.cuda.weights import DeviceMatrix, DeviceTable

_WIDTH = 256
"""Columns a program looks up."""


@triton.jit
def _looked_up(
    codes,
    scales,
    factors,
    row,
    column,
    inside,
    width,
    groups,
    BITS: tl.constexpr,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    FACTORS: tl.constexpr,
):
    """Columns of a row, float32. width: codes of a row, in elements. PACKED: INT4 as `layout` has it."""
    start = row.to(tl.int64) * width
    if BITS == 4:
        if PACKED:
            byte, shift = column // 128 * 64 + column % 64, column % 128 // 64 * 4
            stored = tl.load(codes + start + byte, mask=inside, other=0).to(tl.int32)
            values = ((stored << (28 - shift)) >> 28).to(tl.float32)
        else:
            stored = tl.load(codes + start + column // 2, mask=inside, other=0).to(tl.int32)
            values = ((stored >> (column % 2 * 4)) & 15).to(tl.float32) - 8
    else:
        values = tl.load(codes + start + column, mask=inside, other=0).to(tl.float32)
    if BITS <= 8:
        values *= tl.load(scales + row.to(tl.int64) * groups + column // GROUP, mask=inside, other=0).to(tl.float32)
        if FACTORS:
            values *= tl.load(factors + row)
    return values


@triton.jit
def _embed(
    codes,
    scales,
    factors,
    ids,
    out,
    width,
    groups,
    first,
    n_columns,
    scale,
    OVERLAPS: tl.constexpr,
    BITS: tl.constexpr,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    FACTORS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row = tl.program_id(0)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < n_columns
    wait_for_inputs(OVERLAPS)
    token = tl.load(ids + row)
    values = _looked_up(codes, scales, factors, token, first + at, inside, width, groups, BITS, PACKED, GROUP, FACTORS)
    tl.store(out + row.to(tl.int64) * n_columns + at, values * scale, mask=inside)


@triton.jit
def _inputs(
    context,
    norm_weight,
    codes,
    scales,
    factors,
    ids,
    out,
    width,
    groups,
    first,
    n_columns,
    context_scale,
    scale,
    total_scale,
    eps,
    OVERLAPS: tl.constexpr,
    BITS: tl.constexpr,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    FACTORS: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row, part = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, WIDTH)
    inside = i < PART
    at = row.to(tl.int64) * n_columns + part * PART + i
    wait_for_inputs(OVERLAPS)
    token = tl.load(ids + row)
    column = first + part * PART + i
    values = _looked_up(codes, scales, factors, token, column, inside, width, groups, BITS, PACKED, GROUP, FACTORS)
    own = tl.load(context + at, mask=inside, other=0.0).to(tl.float32) * context_scale
    own *= tl.rsqrt(tl.sum(own * own) / PART + eps) * tl.load(norm_weight + i, mask=inside, other=0.0)
    tl.store(out + at, (own + values * scale) * total_scale, mask=inside)


@triton.jit
def _decode(
    codes,
    scales,
    out,
    M,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    let_next_start(OVERLAPS)
    pieces: tl.constexpr = (K + 127) // 128
    groups: tl.constexpr = (K + GROUP - 1) // GROUP
    piece = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, 64)
    known = (row < M)[:, None]
    bytes_ = tl.load(codes + row[:, None] * (pieces * 64) + piece * 64 + i[None, :], mask=known, other=0)
    wait_for_inputs(OVERLAPS)
    for high in tl.static_range(2):
        column = piece * 128 + high * 64 + i
        inside = known & (column < K)[None, :]
        scale = tl.load(scales + row[:, None] * groups + column[None, :] // GROUP, mask=inside, other=0).to(tl.float32)
        values = nibbles(bytes_, high).to(tl.float32) * (scale * 0.0625)
        tl.store(out + row[:, None] * K + column[None, :], rounded(values, out.dtype.element_ty), mask=inside)


def embed(
    table: DeviceMatrix | DeviceTable, ids: torch.Tensor, scale: float, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """`Ops.embed`: rows ids int32 (N,) of a table, columns start .. stop, times scale. float32 (N, stop - start). A
    with it (`common`)."""
    n_columns = (table.shape[1] if stop is None else stop) - start
    out = torch.empty((len(ids), n_columns), dtype=torch.float32, device=ids.device)
    codes, scales, factors, width, groups = _stored(table)
    launch_first(
        _embed,
        (len(ids), triton.cdiv(n_columns, _WIDTH)),
        ids.device,
        2,
        *(codes, scales, factors, ids, out, width, groups, start, n_columns, scale),
        WIDTH=_WIDTH,
        **_coding(table),
    )
    return out


def per_layer_inputs(
    context: torch.Tensor,
    context_scale: float,
    norm_weight: torch.Tensor,
    eps: float,
    table: DeviceMatrix | DeviceTable,
    ids: torch.Tensor,
    scale: float,
    start: int,
    total_scale: float,
) -> torch.Tensor:
    """What `PerLayerInputs` makes of the projection context (N, W) float32 and rows of the table, in one launch:

        (rms_norm(context * context_scale, norm_weight) + table[ids, start : start + W] * scale) * total_scale

    the norm over parts of as many columns as norm_weight (P,) has. float32 (N, W), in the place of context."""
    n_rows, n_columns = context.shape
    part = norm_weight.shape[0]
    codes, scales, factors, width, groups = _stored(table)
    launch(
        _inputs,
        (n_rows, n_columns // part),
        context.device,
        2,
        *(context, norm_weight, codes, scales, factors, ids, context, width, groups, start, n_columns),
        *(context_scale, scale, total_scale, eps),
        PART=part,
        WIDTH=ceil_power_of_2(part),
        **_coding(table),
    )
    return context


def decoded(matrix: DeviceMatrix, out: torch.Tensor | None = None) -> torch.Tensor:
    """An INT4 matrix as bfloat16 (M, K), into `out` if given: for products with many rows, by cuBLAS. The product costs
    much more than this from a few hundred rows on."""
    n_rows, n_columns = matrix.shape
    assert matrix.bits == 4
    assert matrix.scales is not None
    if out is None:
        out = torch.empty((n_rows, n_columns), dtype=torch.bfloat16, device=matrix.codes.device)
    rows = 64
    launch(
        _decode,
        (triton.cdiv(n_rows, rows), n_pieces(n_columns)),
        out.device,
        4,
        *(matrix.codes.view(torch.int8), matrix.scales, out, n_rows),
        K=n_columns,
        GROUP=matrix.group_size,
        ROWS=rows,
    )
    return out


def _stored(table: DeviceMatrix | DeviceTable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    scales = table.codes if table.scales is None else table.scales
    factors = getattr(table, "row_factors", None)
    n_groups = 0 if table.scales is None else scales.shape[1]
    return table.codes, scales, scales if factors is None else factors, table.codes.stride(0), n_groups


def _coding(table: DeviceMatrix | DeviceTable) -> dict[str, object]:
    return {
        "BITS": table.bits,
        "PACKED": isinstance(table, DeviceMatrix),
        "GROUP": table.group_size or table.shape[1],
        "FACTORS": getattr(table, "row_factors", None) is not None,
    }
