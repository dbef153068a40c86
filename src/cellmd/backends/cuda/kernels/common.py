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


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program can have on this device; 0 for the host."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, warps: int, *args: Any, **constants: Any) -> None:
    """Run kernel(*args, OVERLAPS=..., **constants) on the grid, with so many warps a program."""
    early = overlaps(device)
    options = {"launch_pdl": True} if early else {}
    kernel[grid](*args, OVERLAPS=early, num_warps=warps, **constants, **options)


def launch_first(
    kernel: Any, grid: tuple[int, ...], device: torch.device, warps: int, *args: Any, **constants: Any
) -> None:
    """The same, after all that was launched before has ended: a pass begins."""
    kernel[grid](*args, OVERLAPS=False, num_warps=warps, **constants)


@triton.jit
def wait_for_inputs(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        tl_cuda.gdc_wait()


@triton.jit
def let_next_start(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        tl_cuda.gdc_launch_dependents()


_LOW = tl.constexpr("{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }")
_HIGH = tl.constexpr("and.b32 $0, $1, 0xF0F0F0F0;")


@triton.jit
def nibbles(bytes_, HIGH: tl.constexpr):
    """int8 bytes of a piece (`layout`) -> 16 times the values in their high or low nibbles, int8. In assembly, four at
    a time: the compiler would take them one by one."""
    if ASSEMBLY:
        if HIGH:
            return tl.inline_asm_elementwise(_HIGH, "=r,r", [bytes_], dtype=tl.int8, is_pure=True, pack=4)
        else:
            return tl.inline_asm_elementwise(_LOW, "=r,r", [bytes_], dtype=tl.int8, is_pure=True, pack=4)
    else:
        if HIGH:
            return (bytes_ & -16).to(tl.int8)
        else:
            return (bytes_ << 4).to(tl.int8)


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
