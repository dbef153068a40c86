"""Products of integers: what the kernels for one row and for a few have in common.

The inputs of a product become integers of 16 bits: each piece of 128 columns of a row is divided by its largest size /
32512 and rounded, and a number is 256 times its high byte plus its low one. So a product of int8 with both bytes, as
two columns, is exact until scales come in: of a whole piece it still fits 32 bits. All of a piece's inputs are rounded
by less than bfloat16 rounds its largest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import nibbles

PLAIN, SOFTCAP, GEGLU, GEGLU_OTHER = (tl.constexpr(i) for i in range(4))
"""What becomes of a product: itself; cap * tanh(it / cap); gelu(it) * that of a second matrix, or * other numbers."""

STEPS = tl.constexpr(32512)
"""The largest size of a piece in steps: the most whose high byte is 127."""

_LEAST = tl.constexpr(1e-30)
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded, and lies in its low bits
_ROUNDER_BITS = tl.constexpr(0x4B400000)


@triton.jit
def steps_in(largest):
    """One over the step of a piece of this largest size."""
    return 32512.0 / tl.maximum(largest, _LEAST)


@triton.jit
def high_and_low(x, inverse):
    """x / step, rounded, as high and low bytes."""
    q = (x * inverse + _ROUNDER).to(tl.int32, bitcast=True) - _ROUNDER_BITS
    return ((q + 128) >> 8).to(tl.int8), q.to(tl.int8)


@triton.jit
def both_bytes(part):
    """Products int32 (..., 2) with high and low bytes -> with the numbers themselves, int32 (...)."""
    high, low = tl.split(part)
    return high * 256 + low


@triton.jit
def stored(codes, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, SECOND: tl.constexpr, W: tl.constexpr):
    """What lies in memory of pieces of the rows. int4: the bytes SECOND * W + i, (CH, BLOCK, W); int8: all columns,
    (128 / W, CH, BLOCK, W)."""
    i = tl.arange(0, W)
    pieces: tl.constexpr = (K + 127) // 128
    inside = (rows < M)[None, :, None] & (piece < pieces)[:, None, None]
    if BITS == 4:
        at = piece[:, None, None] * 64 + SECOND * W + i[None, None, :]
        return tl.load(codes + rows[None, :, None] * (pieces * 64) + at, mask=inside, other=0)
    else:
        first = tl.arange(0, 128 // W) * W
        at = first[:, None, None, None] + piece[None, :, None, None] * 128 + i[None, None, None, :]
        inside = inside[None] & (at < K)
        return tl.load(codes + rows[None, None, :, None] * K + at, mask=inside, other=0)


@triton.jit
def weights(first, second, BITS: tl.constexpr, W: tl.constexpr):
    """The values, int4 16-fold, of what `stored` gave: int8 (128 / W * CH, BLOCK, W), columns J * W + i of all pieces
    before those of the next J."""
    if BITS == 8:
        return tl.reshape(first, (first.shape[0] * first.shape[1], first.shape[2], W))
    else:
        CH: tl.constexpr = first.shape[0]
        BLOCK: tl.constexpr = first.shape[1]
        if W == 64:
            halves = tl.join(nibbles(first, False), nibbles(first, True))
            return tl.reshape(tl.permute(halves, (3, 0, 1, 2)), (2 * CH, BLOCK, W))
        else:
            low = tl.join(nibbles(first, False), nibbles(second, False))
            high = tl.join(nibbles(first, True), nibbles(second, True))
            return tl.reshape(tl.permute(tl.join(low, high), (4, 3, 0, 1, 2)), (4 * CH, BLOCK, W))


@triton.jit
def group_scales(scales, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, W: tl.constexpr):
    """Scales of pieces of the rows, float32, for values as `weights` gives them: (CH, BLOCK) where a group holds whole
    pieces, else (128 / W, CH, BLOCK)."""
    groups: tl.constexpr = (K + GROUP - 1) // GROUP
    inside = (rows < M)[None, :] & (piece * 128 < K)[:, None]
    if GROUP % 128 == 0 or groups == 1:
        group = tl.minimum(piece * 128 // GROUP, groups - 1)
        found = tl.load(scales + rows[None, :] * groups + group[:, None], mask=inside, other=0)
    else:
        first = tl.arange(0, 128 // W) * W
        group = tl.minimum((piece[None, :] * 128 + first[:, None]) // GROUP, groups - 1)  # the last may be padding
        found = tl.load(scales + rows[None, None, :] * groups + group[:, :, None], mask=inside[None], other=0)
    return found.to(tl.float32) * (0.0625 if BITS == 4 else 1.0)
