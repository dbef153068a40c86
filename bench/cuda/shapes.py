"""A decoder of Gemma 4 E2B's exact shapes, of random INT4 weights, and a decoding step of it in kernels alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cellmd.backends.cuda.kernels.attention import Raw, Shares, decode_attention
from cellmd.backends.cuda.kernels.layout import n_pieces
from cellmd.backends.cuda.kernels.linear import Residual, geglu, linear, open_linear
from cellmd.backends.cuda.kernels.lookup import embed, per_layer_inputs
from cellmd.backends.cuda.kernels.norms import add_norm_, rms_norm
from cellmd.backends.cuda.kernels.top_k import top_k
from cellmd.backends.cuda.weights import DeviceMatrix, DeviceTable

D, FFN, PLE, VOCABULARY, HEADS, LAYERS, WRITERS, WINDOW, GROUP = 1536, 6144, 256, 262_144, 8, 35, 15, 512, 128
EPS = 1e-6
BF16 = torch.bfloat16


def matrix(n_rows: int, n_columns: int, bits: int = 4) -> DeviceMatrix:
    """Random codes, scales that keep products of the size of their inputs."""
    scales = (torch.rand(n_rows, -(-n_columns // GROUP), device="cuda") + 0.5) / (5 if bits == 4 else 74)
    scales = (scales * n_columns**-0.5).half()
    width, kind, low = (64 * n_pieces(n_columns), torch.uint8, 0) if bits == 4 else (n_columns, torch.int8, -128)
    codes = torch.randint(low, low + 256, (n_rows, width), dtype=kind, device="cuda")
    return DeviceMatrix((n_rows, n_columns), bits, codes, scales, GROUP)


def norm(width: int) -> torch.Tensor:
    return torch.rand(width, device="cuda") + 0.5


def bytes_of(matrix: DeviceMatrix) -> int:
    scales = 0 if matrix.scales is None else matrix.scales.nbytes
    return matrix.codes.nbytes + scales


@dataclass
class Layer:
    full: bool
    head_dim: int
    projections: tuple[DeviceMatrix, ...]
    output: DeviceMatrix
    gate: DeviceMatrix
    up: DeviceMatrix
    down: DeviceMatrix
    own_gate: DeviceMatrix
    own_projection: DeviceMatrix
    norms: dict[str, torch.Tensor]

    def matrices(self) -> list[DeviceMatrix]:
        return [
            *self.projections,
            *(self.output, self.gate, self.up, self.down, self.own_gate, self.own_projection),
        ]


def layer(index: int) -> Layer:
    full = index % 5 == 4
    head_dim = 512 if full else 256
    ffn = FFN if index < WRITERS else 2 * FFN
    widths = [HEADS * head_dim, head_dim, head_dim] if index < WRITERS else [HEADS * head_dim]
    names = ("input", "attention", "ffn", "ffn_out", "own")
    return Layer(
        full,
        head_dim,
        tuple(matrix(width, D) for width in widths),
        matrix(D, HEADS * head_dim),
        matrix(ffn, D),
        matrix(ffn, D),
        matrix(D, ffn),
        matrix(PLE, D),
        matrix(D, PLE),
        {name: norm(D) for name in names} | {"q": norm(head_dim), "k": norm(head_dim)},
    )


class Step:
    """One token of each of n_rows sequences at `context`: embedding, 35 layers, head, the largest 64 logits."""

    def __init__(self, n_rows: int, context: int) -> None:
        self.n_rows = n_rows
        self.layers = [layer(index) for index in range(LAYERS)]
        self.embedding = matrix(VOCABULARY, D)
        self.own_projection = matrix(LAYERS * PLE, D)
        width = LAYERS * PLE
        self.table = DeviceTable(
            (4096, width),
            4,
            torch.randint(0, 256, (4096, width // 2), dtype=torch.uint8, device="cuda"),
            torch.randint(-128, 128, (4096, width // 256), dtype=torch.int8, device="cuda"),
            torch.rand(4096, device="cuda") / 1000,
            256,
        )
        self.final_norm, self.own_norm = norm(D), norm(PLE)
        integers = {"dtype": torch.int32, "device": "cuda"}
        self.ids = torch.randint(0, 4096, (n_rows,), **integers)
        self.slots = torch.arange(n_rows, **integers)
        self.positions = torch.full((n_rows,), context - 1, **integers)
        self.turns = {False: self._turns(128), True: self._turns(64)}
        self.caches = {}
        for index in range(WRITERS):
            one = self.layers[index]
            places = context if one.full else WINDOW + 127
            shape = n_rows, places, 1, one.head_dim
            self.caches[index] = (*(torch.randn(shape, device="cuda").to(BF16) for _ in range(2)), places)

    def _turns(self, turned: int) -> torch.Tensor:
        angles = torch.rand(self.n_rows, turned, device="cuda") * 6
        return torch.stack([torch.cos(angles), torch.sin(angles)], dim=1)

    def weight_bytes(self) -> int:
        matrices = [matrix for layer in self.layers for matrix in layer.matrices()]
        return sum(bytes_of(matrix) for matrix in [*matrices, self.embedding, self.own_projection])

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = embed(self.embedding, self.ids, D**0.5)
        (context,) = linear(x, [self.own_projection])
        own = per_layer_inputs(context, D**-0.5, self.own_norm, EPS, self.table, self.ids, PLE**0.5, 0, 2.0**-0.5)
        chain = _OneRow(x) if self.n_rows == 1 else _Rows(x)
        for index, layer in enumerate(self.layers):
            self._layer(chain, index, layer, own[:, index * PLE : (index + 1) * PLE])
        (logits,) = chain.linear([self.embedding], self.final_norm, cap=30.0)
        return top_k(logits, 64)

    def _layer(self, chain: _OneRow | _Rows, index: int, layer: Layer, own: torch.Tensor) -> None:
        n, shape, norms = self.n_rows, (self.n_rows, -1, layer.head_dim), layer.norms
        q, *written = chain.linear(layer.projections, norms["input"])
        cache = self.caches[index if index < WRITERS else (14 if layer.full else 13)]
        raw = Raw(norms["q"], self.turns[layer.full], EPS, *(part.view(shape) for part in written), k_weight=norms["k"])
        at = *cache, self.slots, self.positions, 0 if layer.full else WINDOW
        attended = decode_attention(q.view(shape), *at, raw=raw, joined=n == 1, dtype=BF16)
        whole = attended if isinstance(attended, Shares) else attended.view(n, -1)
        chain.add(open_linear(whole, layer.output), norms["attention"])
        chain.add(open_linear(chain.geglu(layer.gate, layer.up, norms["ffn"]), layer.down), norms["ffn_out"])
        chain.add(open_linear(chain.geglu(layer.own_gate, own, None), layer.own_projection), norms["own"], 0.5)


class _OneRow:
    """The residual stream of one row: its closings are done by the products that come next."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.pending: Residual | None = None

    def add(self, y: torch.Tensor, weight: torch.Tensor, scale: float = 1.0) -> None:
        self.pending = Residual(y, weight, torch.empty_like(self.x), scale)

    def linear(
        self, matrices: tuple[DeviceMatrix, ...] | list[DeviceMatrix], weight: torch.Tensor, cap: float = 0.0
    ) -> tuple[torch.Tensor, ...]:
        y = linear(self.x, matrices, norm_weight=weight, residual=self.pending, eps=EPS, cap=cap)
        self._closed()
        return y

    def geglu(self, gate: DeviceMatrix, up: DeviceMatrix | torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        y = geglu(self.x, gate, up, norm_weight=weight, residual=self.pending, eps=EPS, dtype=BF16)
        self._closed()
        return y

    def _closed(self) -> None:
        if self.pending is not None:
            self.x = self.pending.out
            self.pending = None


class _Rows:
    """The residual stream of several rows: a closing also gives the next product's normed input."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.pending: tuple[torch.Tensor, torch.Tensor, float] | None = None

    def add(self, y: torch.Tensor, weight: torch.Tensor, scale: float = 1.0) -> None:
        self.pending = y, weight, scale

    def _input(self, weight: torch.Tensor | None) -> torch.Tensor:
        if self.pending is None:
            return self.x if weight is None else rms_norm(self.x, weight, EPS, dtype=BF16)
        normed = add_norm_(self.x, *self.pending[:2], EPS, self.pending[2], next_weight=weight)
        return self.x if normed is None else normed

    def linear(
        self, matrices: tuple[DeviceMatrix, ...] | list[DeviceMatrix], weight: torch.Tensor, cap: float = 0.0
    ) -> tuple[torch.Tensor, ...]:
        return linear(self._input(weight), matrices, cap=cap)

    def geglu(self, gate: DeviceMatrix, up: DeviceMatrix | torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return geglu(self._input(weight), gate, up, dtype=BF16)
