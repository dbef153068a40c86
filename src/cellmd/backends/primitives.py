"""What a backend must be able to do: memory, and the operations that all others are made of (`ops`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from cellmd.errors import BackendError
from cellmd.quant.tensor import PackedTensor

Tensor = Any
"""The backend's own array type. Model code passes it on and never looks inside."""

Matrix = Any
"""A weight matrix (M, K) ready to multiply: made by `Ops.matrix`."""

Clip = tuple[float, float, float, float]
"""input_min, input_max, output_min, output_max of a clipped linear layer."""


@dataclass(frozen=True)
class Ceilings:
    """What a machine can do at best, measured: bytes read from memory and int8 multiply-adds, both a second."""

    read_bytes_per_s: float
    int8_macs_per_s: float


class Primitives(ABC):
    """What a backend must be able to do. See the module docstring of `ops` for what holds for every operation."""

    name: str

    prompt_rows: int = 512
    """Rows of a prompt that are well run at once."""

    runs_ahead: bool = False
    """Whether a step may begin before the host has read what the one before gave: `numbers`, `guess` and `send` are for
    that, and the first two are there only then."""

    def ceilings(self) -> Ceilings | None:
        """Measures the machine with this backend's threads; None where the backend has no means to."""
        return None

    def read_rate(self, stored: Sequence[Any]) -> float | None:
        """Bytes a second at which this backend's threads read NumPy arrays once, one after another, such as stored
        tensors' views of the mapped file; None where the backend has no means to measure."""
        return None

    # ---- memory ---------------------------------------------------------------------------------------------------

    def expect(self, tensors: Iterable[PackedTensor]) -> None:
        """All of these are going to be bound, some of them perhaps much later. Raises BackendError, saying how much
        memory is needed and free, if there is too little for them; until then `free_bytes` keeps it for them."""
        return

    def binding(self, tensors: Iterable[PackedTensor]) -> AbstractContextManager[None]:
        """Within it, these, which were expected, and no others are bound."""
        return nullcontext()

    def free_bytes(self) -> int | None:
        """Memory that caches may still take, where it is not the host's; None where it is."""
        return None

    def peak_bytes(self) -> int | None:
        """The most memory taken so far, where it is not the host's; None where it is."""
        return None

    @abstractmethod
    def begin(self) -> None:
        """Start a forward pass: results of the previous one may be overwritten from here on."""

    @abstractmethod
    def matrix(self, packed: PackedTensor, *, clip: Clip | None = None, bias: PackedTensor | None = None) -> Matrix:
        """Bind a 2-D stored tensor as a matrix to multiply with. Copies nothing on the CPU. `embed` takes it too, in
        either layout: the token embedding is a table and, tied, the output head."""

    @abstractmethod
    def table(self, packed: PackedTensor) -> Matrix:
        """Bind a 2-D stored tensor whose rows are only looked up. It is never made resident as a whole."""

    @abstractmethod
    def rows_of(self, matrix: Matrix, start: int, stop: int) -> Matrix:
        """The matrix of outputs start..stop alone, sharing memory. Both are multiples of 16 (or stop is M)."""

    @abstractmethod
    def array(self, packed: PackedTensor) -> Tensor:
        """A small stored tensor (norm weights, kernels, scalars) as float32, in its own shape."""

    def number(self, packed: PackedTensor) -> float:
        """A stored single number, on the host."""
        return float(self.to_numpy(self.array(packed)).item())

    @abstractmethod
    def ints(self, values: Sequence[int]) -> Tensor:
        """An int32 tensor (n,) of host integers that outlives `begin`."""

    @abstractmethod
    def floats(self, values: Any) -> Tensor:
        """A float32 tensor of host data (a NumPy array or nested sequences), in its shape, that outlives `begin`."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of zeros that outlives `begin`."""

    @abstractmethod
    def keep(self, x: Tensor) -> Tensor:
        """A copy of x that outlives `begin`."""

    @abstractmethod
    def to_numpy(self, x: Tensor) -> Any:
        """x as a NumPy array on the host that outlives `begin`."""

    # ---- work that comes again ------------------------------------------------------------------------------------

    def replay(self, key: object, name: str, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """function(*inputs), for work that comes again and again with other inputs: a backend may record what it does,
        and do that again without calling it.

        inputs: tensors (N, ...), one entry a row: made by `ints`, `numbers` or `guess`, or float32, which the function
        may use up. The function calls operations alone, reads nothing on the host, and is row by row: beside what it
        writes to caches it gives tensors (N, ...), or a tuple of them, that depend on a row's own entries. So it may be
        called with rows repeated, and more than once: writing the same again changes nothing. key and name stand for
        the function and all it refers to; what is recorded goes when the key does. Results last until the next `begin`
        or `replay`.
        """
        return function(*inputs)

    def replay_whole(self, key: object, name: object, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """As `replay`, of work whose rows know of one another and in which nothing is written to caches: the function
        is called with the inputs as they are, and may come again with others of the same shapes. name is hashable."""
        return function(*inputs)

    def numbers(self, values: Sequence[float]) -> Tensor:
        """A float32 tensor (n,) of host numbers, for `replay` and `guess`."""
        raise BackendError(f"the backend {self.name} does not run ahead")

    def guess(
        self,
        values: Tensor,
        ids: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        number: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The tokens that `runtime.sampler` will choose of the largest logits values (N, k) and their columns ids,
        without ties and to float32's rounding: int32 (N,). temperature above 0, top_k in 1..k, top_p, min_p, and the
        number from 0 to 1 that is drawn, are of `numbers`. With them goes all that the host wants to know, for `send`:
        int32 (N, 1 + 2 k), in each row the token, the ids, and the bits of the values."""
        raise BackendError(f"the backend {self.name} does not run ahead")

    def send(self, x: Tensor) -> Callable[[], Any]:
        """Begin to copy x to the host. The function waits until x is there, and gives what `to_numpy` would; what is
        run after this does not matter to it."""
        array = self.to_numpy(x)
        return lambda: array

    # ---- rows -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def embed(self, table: Matrix, ids: Tensor, scale: float, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a table times float32(scale): columns start..stop (None: to the end) of row ids[i], decoded.
        (N, stop - start). `table` was made by `table` or `matrix`; ids are in range; start and stop are multiples of 16
        or the end of a row."""

    @abstractmethod
    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """x[rows]; x (N, ...) float32 or int32, rows (R,) int32 -> (R, ...)."""

    @abstractmethod
    def put_rows_(self, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        """x[rows] = values."""

    @abstractmethod
    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x with another shape, sharing memory."""

    @abstractmethod
    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """x[:, start:stop] of a 2-D tensor; may be a strided view, which every elementwise operation accepts."""

    # ---- dense ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        """x W^T (+ bias), with the matrix's clip on both sides if it has one. x (N, K) -> (N, M)."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis; x (N, D) or (N, H, hd)."""

    @abstractmethod
    def layer_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight over the last axis (biased variance, no bias term)."""

    # ---- elementwise ----------------------------------------------------------------------------------------------

    @abstractmethod
    def add_(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        """x += y * factor; shapes equal."""

    @abstractmethod
    def scale_(self, x: Tensor, factor: float) -> Tensor:
        """x *= factor."""

    @abstractmethod
    def affine(self, x: Tensor, factor: Tensor | float, offset: Tensor | float) -> Tensor:
        """(x + offset) * factor, in this order; tensors are (D,) and broadcast over rows."""

    @abstractmethod
    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        """min(max(x, low), high); the bounds may be infinite."""

    @abstractmethod
    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """gelu(gate) * up, gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))); up may be a strided view of
        columns. (N, F)."""

    @abstractmethod
    def silu(self, x: Tensor) -> Tensor:
        """x * sigmoid(x)."""

    @abstractmethod
    def glu(self, x: Tensor) -> Tensor:
        """First half times the sigmoid of the second: (N, 2 D) -> (N, D)."""

    @abstractmethod
    def relu(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def softcap_(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap)."""

    # ---- positions and attention ----------------------------------------------------------------------------------

    @abstractmethod
    def rope_table(
        self, positions: Tensor, base: float, rotary_dim: int, head_dim: int, stretch: float = 1.0
    ) -> Tensor:
        """cos (index 0) and sin (index 1) of the angles position * f_i, i < rotary_dim / 2: (N, 2, rotary_dim / 2),
        float32. f_i = 1 / base^(2 i / head_dim) / stretch: exponent, power, reciprocal and quotient are each rounded to
        float32, and so is the angle, as the reference implementation rounds; far positions would otherwise turn by
        visibly other angles.
        positions int32 (N,)."""

    @abstractmethod
    def rope(self, x: Tensor, table: Tensor) -> Tensor:
        """Turn channel pairs (i, i + hd / 2), i < rotary_dim / 2, of x (N, H, hd) by the angles of their row:
        (a, b) -> (a cos - b sin, b cos + a sin); the other channels pass unchanged."""

    @abstractmethod
    def rope_2d(self, x: Tensor, table_x: Tensor, table_y: Tensor) -> Tensor:
        """The first half of each head's channels turned by table_x, the second by table_y, each as a head of its own
        width hd / 2. x (N, H, hd); tables from `rope_table(positions, base, hd / 2, hd / 2)`."""

    @abstractmethod
    def new_cache(self, n_slots: int, capacity: int, n_kv_heads: int, head_dim: int) -> Any:
        """Keys and values of one layer for n_slots sequences of up to `capacity` live positions each. Position p of a
        sequence lies at p mod capacity, so a layer with a window needs window + chunk - 1 places. Memory is taken as
        positions are written, not before. A slot is reused by writing from position 0 again: what lies at positions a
        row does not see is never read."""

    def reserve_(self, cache: Any, n_positions: int) -> None:  # noqa: B027 - most take memory as it is written
        """A sequence is about to grow to so many positions, more than any before in this cache. For backends that
        cannot take memory as it is written. Raises ContextLengthError if there is none."""

    def position_bytes(self, n_kv_heads: int, head_dim: int) -> int:
        """Memory that keys and values of one position take in a cache of so many heads of such a width: those of
        float32 where a backend does not say better."""
        return 2 * 4 * n_kv_heads * head_dim

    @abstractmethod
    def copy_slot_(self, cache: Any, source: int, target: int, n: int) -> None:
        """Make the slot `target` hold what another, `source`, holds for the first n positions of its sequence: whatever
        a row at position n or later sees of them in `source`, it then sees in `target`."""

    def cache_form(self) -> str | None:
        """What bytes of `export_slot` depend on beside the sizes of the cache and the model: the backend, the type that
        keys and values are kept in, the code that computes them. None where slots cannot be exported."""
        return None

    def export_slot(self, cache: Any, slot: int, n: int) -> Any:
        """What the slot holds for the first n positions of its sequence, as a NumPy uint8 array (B,) in a form of the
        backend's own. Only where `cache_form` says so."""
        raise BackendError(f"the backend {self.name} does not export what its cache holds")

    def import_slot_(self, cache: Any, slot: int, n: int, exported: Any) -> None:
        """Make the slot hold what was exported for n positions from a cache of the same sizes (the capacity may differ
        while n exceeds neither): as `copy_slot_` would. Raises ArgumentError for another number of bytes."""
        raise BackendError(f"the backend {self.name} does not export what its cache holds")

    @abstractmethod
    def append_(self, cache: Any, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Write keys and values (N, Hkv, hd) of rows at (slots[i], positions[i])."""

    @abstractmethod
    def attention(self, q: Tensor, cache: Any, slots: Tensor, positions: Tensor, window: int) -> Tensor:
        """Causal attention of q (N, H, hd) over the cached positions p of each row's own slot with
        p <= positions[i] and, if window > 0, p > positions[i] - window. Scores are not scaled (Gemma 4 scales by 1).
        Query head h reads key head h // (H / Hkv). Softmax in float32. Rows of one slot need not be neighbours nor in
        order of position; all of their keys have been appended before. (N, H, hd)."""

    @abstractmethod
    def attention_bidirectional(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every row sees every row; scores not scaled. All (N, H, hd)."""

    @abstractmethod
    def attention_relative(
        self, q: Tensor, k: Tensor, v: Tensor, relative_keys: Tensor, *, past: int, future: int, cap: float
    ) -> Tensor:
        """The audio tower's local attention with relative positions. Row i sees row j, at the distance d = i - j, if
        0 <= d < past or 0 < -d < future; past >= 1, so a row always sees itself; future 0 and 1 mean none. With
        r = relative_keys[past - d], or zeros where past - d >= P (never negative),
            score = cap * tanh((q_i . k_j + q_i . r) / cap), softmax over the seen rows alone, in float32.
        Neither q nor k is scaled here. q, k, v (N, H, hd), relative_keys (P, H, hd). (N, H, hd)."""

    # ---- vocabulary -----------------------------------------------------------------------------------------------

    @abstractmethod
    def top_k(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest of each row of logits (N, V), 1 <= k <= V: values float32 (N, k), largest first, and their
        columns int32 (N, k); of equals the lower column comes first (0.0 and -0.0 are equals). What is not a number
        ranks below everything, -inf included. Both tensors are as they would be for each row alone."""

    @abstractmethod
    def log_sum_exp(self, logits: Tensor) -> Tensor:
        """log(sum(exp(x - largest))) of each row of logits (N, V), the logarithm of its softmax's denominator: (N,),
        never negative, so log softmax(x) = (x - largest) - this. Not a number for a row that holds one, or whose
        largest is infinite. Terms are float32 within a few roundings; their sum is kept in more than float32 (float64,
        or float64 over short float32 sums), in an order that is a function of V alone; the result is float32."""

    # ---- convolution and pooling ----------------------------------------------------------------------------------

    @abstractmethod
    def conv2d(self, x: Tensor, kernel: Tensor) -> Tensor:
        """3 x 3, stride 2, zero padding 1, no bias.
        x (T, F, C), kernel (C_out, C, 3, 3) -> (ceil(T/2), ceil(F/2), C_out)."""

    @abstractmethod
    def depthwise_conv1d(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Causal: y[t, d] = sum_j kernel[d, j] * x[t - width + 1 + j, d], rows before the first are zero.
        x (T, D), kernel (D, width)."""

    @abstractmethod
    def pool_patches(self, x: Tensor, grid_width: int, size: int) -> Tensor:
        """Means over size x size blocks of a row-major grid of patches, in row-major order of the blocks:
        (h * grid_width, D) -> (h/size * grid_width/size, D); both sides of the grid are multiples of size."""
