"""Products with few rows: the weights are read once, as they lie, and multiplied as integers.

How inputs become integers stands in `integers`, the kernels in `one_row` and `few_rows`. Weights that do not depend on
what runs before are asked for before it is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.attention import Shares
from cellmd.backends.cuda.kernels.common import ceil_power_of_2, launch
from cellmd.backends.cuda.kernels.few_rows import few_rows, split_rows
from cellmd.backends.cuda.kernels.integers import GEGLU, GEGLU_OTHER, PLAIN, SOFTCAP
from cellmd.backends.cuda.kernels.layout import PIECE, n_pieces
from cellmd.backends.cuda.kernels.one_row import one_row, ready_row
from cellmd.backends.cuda.weights import DeviceMatrix

MOST_ROWS = 64
"""Rows of x; with more, `matmul` is the faster way."""

MOST_MATRICES = 3


@dataclass(frozen=True)
class Residual:
    """The closing of a residual block: x becomes (x + rms_norm(y, weight)) * scale. All float32; y (1, K), or (S, 1, K)
    of which the sum is meant.

    `out` (1, K) takes the new x: not x itself, which programs of the same launch still read.
    """

    y: torch.Tensor
    weight: torch.Tensor
    out: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Tile:
    """outputs a program, the pieces of columns that it multiplies at a time, its warps; splits: programs to the columns
    of one output; with more than one row also stages: loads under way; with one, ready: whether a launch of its own
    makes the inputs ready."""

    outputs: int
    pieces: int
    warps: int
    stages: int = 3
    splits: int = 1
    ready: bool = False


def linear(
    x: torch.Tensor,
    matrices: Sequence[DeviceMatrix],
    *,
    norm_weight: torch.Tensor | None = None,
    residual: Residual | None = None,
    eps: float = 0.0,
    cap: float = 0.0,
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, ...]:
    """x (N, K) float32 or bfloat16, N <= MOST_ROWS, times up to three matrices (M_i, K) of equal coding -> (N, M_i) of
    `dtype` each, in one launch. cap > 0: cap * tanh(y / cap) of each output y.

    norm_weight (K,): the product is that of rms_norm(x, norm_weight, eps). residual: of x as it is after that closing,
    with the same eps. Both with one row alone, and K up to what one piece a step holds (`fits_one_step`).
    """
    outs = tuple(x.new_empty((x.shape[0], matrix.shape[0]), dtype=dtype) for matrix in matrices)
    tile = tile or _tile(x.shape[0], matrices[0], double=False)
    _launch(x, matrices, outs, SOFTCAP if cap else PLAIN, norm_weight, residual, eps, tile, cap=cap)
    return outs


def open_linear(x: torch.Tensor | Shares, matrix: DeviceMatrix, *, tile: Tile | None = None) -> torch.Tensor:
    """The product of x and one matrix in parts (S, N, M) float32, whose sum, in their order, it is. Shares of more than
    one row are joined on the way, if their heads are whole pieces (`joins`)."""
    rows = x.largest if isinstance(x, Shares) else x
    n_rows = rows.shape[0]
    tile = tile or _open_tile(n_rows, matrix)
    parts = rows.new_empty((tile.splits, n_rows, matrix.shape[0]), dtype=torch.float32)
    _launch(x, (matrix,), (parts,), PLAIN, None, None, 0.0, tile)
    return parts


def geglu(
    x: torch.Tensor,
    gate: DeviceMatrix,
    up: DeviceMatrix | torch.Tensor,
    *,
    norm_weight: torch.Tensor | None = None,
    residual: Residual | None = None,
    eps: float = 0.0,
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> torch.Tensor:
    """gelu(x W_gate^T) * (x W_up^T), or * up if that is a float32 tensor (N, M) whose rows may lie apart. (N, M) of
    `dtype`. The rest as for `linear`."""
    out = x.new_empty((x.shape[0], gate.shape[0]), dtype=dtype)
    double = isinstance(up, DeviceMatrix)
    tile = tile or _tile(x.shape[0], gate, double=double)
    if isinstance(up, DeviceMatrix):
        _launch(x, (gate, up), (out, out), GEGLU, norm_weight, residual, eps, tile)
    else:
        _launch(x, (gate,), (out,), GEGLU_OTHER, norm_weight, residual, eps, tile, other=up)
    return out


def alike(matrices: Sequence[DeviceMatrix]) -> bool:
    """Whether one launch can take these matrices: INT4 or INT8, coded alike, in whole words, without clip and bias."""
    first = matrices[0]
    return len(matrices) <= MOST_MATRICES and all(
        matrix.clip is None
        and matrix.bias is None
        and matrix.scales is not None
        and first.scales is not None
        and (matrix.bits == 4 or matrix.shape[1] % 4 == 0)
        and matrix.scales.dtype == first.scales.dtype
        and (matrix.shape[1], matrix.bits, matrix.group_size) == (first.shape[1], first.bits, first.group_size)
        for matrix in matrices
    )


def fits_one_step(n_columns: int) -> bool:
    """Whether a row of so many columns can be normed in the product itself."""
    return n_pieces(n_columns) <= _MOST_PIECES


_MOST_PIECES = 64


def joins(n_rows: int, head_dim: int) -> bool:
    """Whether `open_linear` takes what attention of so many rows, with heads of this width, leaves in shares. With one
    row a launch of its own is faster."""
    return n_rows > 1 and head_dim % PIECE == 0


def _launch(
    x: torch.Tensor | Shares,
    matrices: Sequence[DeviceMatrix],
    outs: Sequence[torch.Tensor],
    ending: tl.constexpr,
    norm_weight: torch.Tensor | None,
    residual: Residual | None,
    eps: float,
    tile: Tile,
    *,
    cap: float = 0.0,
    other: torch.Tensor | None = None,
) -> None:
    shares, x = (x, x.partial) if isinstance(x, Shares) else (None, x)
    n_rows, first = x.shape[0], matrices[0]
    n_columns = first.shape[1]
    pieces = n_pieces(n_columns)
    fused = norm_weight is not None or residual is not None
    alone = n_rows == 1 and (fused or tile.ready or tile.pieces * tile.splits >= pieces)
    arguments: list[object] = []
    for k in range(MOST_MATRICES):
        matrix, out = (matrices[k], outs[k]) if k < len(matrices) else (first, outs[0])
        codes = matrix.codes.view(torch.int32 if alone else torch.int8)
        arguments += [codes, matrix.scales, out, matrix.shape[0] if k < len(matrices) else 0]
    blocks = sum(triton.cdiv(matrix.shape[0], tile.outputs) for matrix in matrices[: 1 if ending is GEGLU else None])
    grid = blocks, tile.splits
    constants = {
        "K": n_columns,
        "BITS": first.bits,
        "GROUP": first.group_size,
        "ENDING": ending,
        "BLOCK": tile.outputs,
        "CH": tile.pieces,
    }
    other = x if other is None else other
    if alone:
        scale = 1.0 if residual is None else residual.scale
        before = [x] * 3 if residual is None else [residual.y, residual.weight, residual.out]
        inputs = [x, x if norm_weight is None else norm_weight, *before]
        y_parts, normed = 0 if residual is None else residual.y.numel() // n_columns, norm_weight is not None
        units = x
        if tile.ready:
            made, units = _made_ready(inputs, eps, scale, n_columns, Y_PARTS=y_parts, NORM=normed)
            inputs, y_parts, normed = [made] * 5, 0, False
        launch(
            one_row,
            grid,
            x.device,
            tile.warps,
            *(*inputs, units, *arguments, other, eps, scale, cap),
            READY=tile.ready,
            RUNS=triton.cdiv(pieces, tile.pieces * tile.splits),
            Y_PARTS=y_parts,
            NORM=normed,
            **constants,
        )
        return
    bytes_ = torch.empty((n_rows, 2, pieces * PIECE), dtype=torch.int8, device=x.device)
    steps = torch.empty((n_rows, pieces), dtype=torch.float32, device=x.device)
    if shares is None:
        chunk, taken, apart = min(16, ceil_power_of_2(pieces)), (x, x, x), {"SHARES": 1, "HD": 1}
    else:
        chunk, taken = shares.head_dim // PIECE, (x, shares.largest, shares.total)
        apart = {"SHARES": shares.n_shares, "HD": shares.head_dim}
    chunks = n_rows, triton.cdiv(pieces, chunk)
    launch(split_rows, chunks, x.device, 4, *taken, bytes_, steps, K=n_columns, CH=chunk, **apart)
    launch(
        few_rows,
        grid,
        x.device,
        tile.warps,
        *(bytes_, steps, *arguments, other, other.stride(0), n_rows, cap),
        BN=ceil_power_of_2(n_rows),
        W=32 if first.group_size % 64 and first.group_size < n_columns else 64,
        SPLITS=tile.splits,
        STAGES=tile.stages,
        **constants,
    )


def _made_ready(
    inputs: Sequence[torch.Tensor], eps: float, scale: float, n_columns: int, **constants: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fours and units of `ready_row`."""
    pieces, device = n_pieces(n_columns), inputs[0].device
    fours = torch.empty((pieces, PIECE // 4), dtype=torch.int64, device=device)
    units = torch.empty((pieces,), dtype=torch.float32, device=device)
    whole = ceil_power_of_2(pieces)
    warps = max(1, min(8, whole // 2))
    launch(ready_row, (1,), device, warps, *inputs, fours, units, eps, scale, K=n_columns, CH=whole, **constants)
    return fours, units


def _tile(n_rows: int, matrix: DeviceMatrix, *, double: bool) -> Tile:
    """What was fastest on an H200 at the shapes of Gemma 4 E2B (bench/cuda); with one row, in a whole step, where a
    kernel's instructions come anew from memory each time, so that few of them count as much as few threads."""
    n_outputs, n_columns = matrix.shape
    whole = ceil_power_of_2(n_pieces(n_columns))
    if n_rows > 8:
        if n_outputs >= 1 << 16:
            return Tile(128, 1, 4, 3)
        return Tile(32, 1, 4, 3) if n_outputs >= 1024 else Tile(16, 1, 4, 4)
    if n_rows > 1:
        return Tile(16, min(whole, 8 if double else 16), min(whole, 8), 3)
    if whole > _MOST_PIECES:
        return Tile(16, 16, 8, 3)
    if double:
        return Tile(32, min(whole, 4), 4, ready=True)
    if n_outputs >= 1 << 16:
        return Tile(16, min(whole, 4), 4, ready=True)
    return Tile(8 if n_outputs < 1024 else 16, whole, min(2 * whole, 8))


_OPEN_TILES = (16, (8, 8, 4)), (32, (16, 16, 4)), (48, (16, 16, 8)), (1 << 30, (8, 32, 8))
"""For one row: up to so many pieces; outputs, pieces and warps of a tile."""


def _open_tile(n_rows: int, matrix: DeviceMatrix) -> Tile:
    """The same for products that may be given in parts."""
    pieces = n_pieces(matrix.shape[1])
    if n_rows > 8:
        return Tile(32, 1, 4, 3, splits=min(4, triton.cdiv(pieces, 4)))
    if n_rows > 1:
        return _tile(n_rows, matrix, double=False)
    if pieces <= 2:
        return Tile(8, pieces, 1)
    outputs, count, warps = next(tile for most, tile in _OPEN_TILES if pieces <= most)
    return Tile(outputs, count, warps, splits=triton.cdiv(pieces, count))
