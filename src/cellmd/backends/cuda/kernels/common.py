"""What all kernels share: how they are launched, and the few lines that differ between a GPU and Triton's interpreter.

Programmatic dependent launch (compute capability 9.0 and up): a kernel is set up, and fetches its weights, while the
one before it still runs; `wait_for_inputs` then holds it until that one's results are seen. Every kernel launched so
must wait, before its first read of what another kernel wrote and its first write.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the host (TRITON_INTERPRET=1): for tests."""

INTERPRETER = tl.constexpr(INTERPRETED)
ASSEMBLY = tl.constexpr(not INTERPRETED and torch.version.hip is None)


def available(device: torch.device) -> bool:
    """Whether the kernels run on tensors of this device."""
    if INTERPRETED:
        return bool(device.type == "cpu")
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return bool(torch.cuda.get_device_capability(device) >= (8, 0))


@cache
def overlaps(device: torch.device) -> bool:
    """Whether launches overlap on this device."""
    return not INTERPRETED and device.type == "cuda" and bool(torch.cuda.get_device_capability(device) >= (9, 0))


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, warps: int, *args: Any, **constants: Any) -> None:
    """Run kernel(*args, OVERLAPS=..., **constants) on the grid, with so many warps a program."""
    early = overlaps(device)
    options = {"launch_pdl": True} if early else {}
    kernel[grid](*args, OVERLAPS=early, num_warps=warps, **constants, **options)


@triton.jit
def wait_for_inputs(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        tl_cuda.gdc_wait()


@triton.jit
def let_next_start(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        tl_cuda.gdc_launch_dependents()


def _plane_assembly(plane: int) -> tl.constexpr:
    """Two words (one register) -> two bfloat16: nibble | 0x4300 is 128 + nibble, exactly."""
    return tl.constexpr(f"""{{
        .reg .b32 word, one, bias;
        mov.b32 one, 0x3F803F80;
        mov.b32 bias, 0xC308C308;
        shr.u32 word, $1, {4 * plane};
        lop3.b32 word, word, 0x000F000F, 0x43004300, 0xEA;
        fma.rn.bf16x2 $0, word, one, bias;
    }}""")


_PLANE_0, _PLANE_1, _PLANE_2, _PLANE_3 = (_plane_assembly(plane) for plane in range(4))


@triton.jit
def int4_plane(words, PLANE: tl.constexpr):
    """int16 words of a piece (`layout`) -> the values of columns 32 * PLANE + i, bfloat16, exactly."""
    if ASSEMBLY:
        if PLANE == 0:
            return tl.inline_asm_elementwise(_PLANE_0, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
        elif PLANE == 1:
            return tl.inline_asm_elementwise(_PLANE_1, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
        elif PLANE == 2:
            return tl.inline_asm_elementwise(_PLANE_2, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
        else:
            return tl.inline_asm_elementwise(_PLANE_3, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        return operand(((words >> (4 * PLANE)) & 15).to(tl.float32) - 8)


@triton.jit
def operand(x):
    """x rounded to bfloat16, as an operand of a product. The interpreter knows no products of bfloat16, and would cut
    numbers off rather than round them: there it is float32 with the bits of the nearest bfloat16."""
    if INTERPRETER:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """x float32 as TYPE, to the nearest."""
    if TYPE.is_bf16():
        return operand(x).to(tl.bfloat16)
    else:
        return x.to(TYPE)


@triton.jit
def tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def gelu(x):
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def ceil_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
