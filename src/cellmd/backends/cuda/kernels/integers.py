"""Products of integers: what the kernels for one row and for a few have in common.

The inputs of a product become integers of 16 bits: each piece of 128 columns of a row is divided by its largest size /
32512 and rounded. With int8 weights they are multiplied exactly until scales come in: of a whole piece the sum still
fits 32 bits. All of a piece's inputs are rounded by less than bfloat16 rounds its largest.

With a few rows tensor cores multiply: a number is 256 times its high byte plus its low one, two columns of int8. With
one row an instruction multiplies two numbers of 16 bits with two of a word's four bytes, and adds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import ASSEMBLY

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
def in_fours(values, inverse, CH: tl.constexpr):
    """values / step (CH, 64), rounded, four in a word of 64 bits, the first in its lowest 16: int64 (CH * 16,)."""
    bits = (values * inverse + _ROUNDER).to(tl.int32, bitcast=True)  # of which the lowest 16 are the number
    even, odd = tl.split(tl.reshape(bits, (CH, 16, 2, 2)))
    first, second = tl.split((even & 0xFFFF) | (odd << 16))
    return tl.reshape((first.to(tl.int64) & 0xFFFFFFFF) | (second.to(tl.int64) << 32), (CH * 16,))


_TWO_AND_TWO = tl.constexpr("""{ .reg .b32 a, b; .reg .s32 t; mov.b64 {a, b}, $3;
dp2a.lo.s32.s32 t, a, $2, $1; dp2a.hi.s32.s32 $0, b, $2, t; }""")


@triton.jit
def plus_products(sum_, bytes_, four):
    """sum_ plus the products of four int8 in a word with four int16 in a word of 64 bits: int32."""
    if ASSEMBLY:
        words = [sum_, bytes_, four]
        return tl.inline_asm_elementwise(_TWO_AND_TWO, "=r,r,r,l", words, dtype=tl.int32, is_pure=True, pack=1)
    else:
        for i in tl.static_range(4):
            sum_ += ((bytes_ << (24 - 8 * i)) >> 24) * ((four << (48 - 16 * i)) >> 48).to(tl.int32)
        return sum_


@triton.jit
def stored(codes, rows, M, first_piece, K: tl.constexpr, BITS: tl.constexpr, CH: tl.constexpr):
    """Words of CH pieces of the rows as they lie in memory, int32 (BLOCK, CH * 16): int4, all of them, twice; int8,
    those of the low and of the high columns."""
    word = tl.arange(0, CH * 16)[None, :]
    pieces: tl.constexpr = (K + 127) // 128
    if BITS == 4:
        at = first_piece * 16 + word
        found = tl.load(
            codes + rows[:, None] * (pieces * 16) + at, mask=(rows < M)[:, None] & (at < pieces * 16), other=0
        )
        return found, found
    else:
        at = first_piece * 32 + word // 16 * 32 + word % 16
        line = codes + rows[:, None] * (K // 4)
        known = (rows < M)[:, None]
        low = tl.load(line + at, mask=known & (at < K // 4), other=0)
        return low, tl.load(line + at + 16, mask=known & (at + 16 < K // 4), other=0)


_NIBBLES = tl.constexpr(-0x0F0F0F10)  # 0xF0F0F0F0


@triton.jit
def halves(first, second, BITS: tl.constexpr):
    """The values, int4 16-fold, of the low and of the high columns, four int8 in a word, of what `stored` gave."""
    if BITS == 4:
        return (first << 4) & _NIBBLES, first & _NIBBLES
    else:
        return first, second


@triton.jit
def group_scales(scales, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr):
    """Scales of the low and of the high columns of pieces of the rows, float32, for values as `halves` gives them:
    (BLOCK, CH) where a group holds whole pieces, else (BLOCK, CH, 4), of each 16 columns."""
    groups: tl.constexpr = (K + GROUP - 1) // GROUP
    unit: tl.constexpr = 0.0625 if BITS == 4 else 1.0
    inside = (rows < M)[:, None] & (piece * 128 < K)[None, :]
    if GROUP % 128 == 0 or groups == 1:
        group = tl.minimum(piece * 128 // GROUP, groups - 1)
        found = tl.load(scales + rows[:, None] * groups + group[None, :], mask=inside, other=0).to(tl.float32) * unit
        return found, found
    else:
        column = (piece * 128)[:, None] + (tl.arange(0, 4) * 16)[None, :]
        line = scales + rows[:, None, None] * groups
        low, high = tl.minimum(column // GROUP, groups - 1), tl.minimum((column + 64) // GROUP, groups - 1)
        inside = inside[:, :, None]
        found = tl.load(line + low[None, :, :], mask=inside, other=0).to(tl.float32) * unit
        return found, tl.load(line + high[None, :, :], mask=inside, other=0).to(tl.float32) * unit
