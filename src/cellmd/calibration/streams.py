"""Two runs of one decoder over the same prompts, layer by layer: with the source's weights, and with those stored.

Both run on the reference backend with matrices looked up by name at each use, so that a layer can run again once its
weights are stored. Only one layer's float weights are in memory at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from cellmd.backends.ops import Clip, Tensor
from cellmd.backends.reference.operations import ReferenceOps
from cellmd.backends.reference.weights import Budget, Weights
from cellmd.config import TextConfig
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.models.layerwise import LayerwiseDecoder
from cellmd.models.weights import Weights as BoundWeights
from cellmd.quant import Coding, PackedTensor, decode, decode_rows, encode
from cellmd.runtime.batch import Part, pack
from cellmd.runtime.batch import Sequence as Running

DECODER = "model.language_model."


class Values(Protocol):
    """Where a run gets its numbers: whole tensors, and rows of tables. `forget` gives up what is kept of them."""

    def whole(self, name: str) -> np.ndarray: ...

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray: ...

    def forget(self) -> None: ...


class Kept:
    """Whole tensors, each made once, whichever of several threads asks first."""

    def __init__(self, make: Callable[[str], np.ndarray]) -> None:
        self._make = make
        self._made: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> np.ndarray:
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make(name)
            return self._made[name]

    def forget(self) -> None:
        self._made.clear()


class SourceValues:
    """The checkpoint's own numbers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._kept = Kept(checkpoint.read_rows)

    def whole(self, name: str) -> np.ndarray:
        return self._kept(name)

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        shape = self._checkpoint.shape(name)
        if len(shape) > 2:  # a table with its leading axes joined; such ones are small
            joined: np.ndarray = self.whole(name).reshape(-1, shape[-1])[ids]
            return joined
        wanted, places = np.unique(ids, return_inverse=True)
        return np.concatenate([self._checkpoint.read_rows(name, row, row + 1) for row in wanted.tolist()])[places]

    def forget(self) -> None:
        self._kept.forget()


class StoredValues:
    """What the file will hold: `packed` where a tensor is stored already, else the source's, tables rounded."""

    def __init__(self, source: SourceValues, plan: Sequence[PlannedTensor]) -> None:
        self.packed: dict[str, PackedTensor] = {}
        self._source = source
        self._tables = {each.spec.name: each.coding for each in plan if each.spec.role == "per_layer_table"}
        self._kept = Kept(lambda name: decode(self.packed[name]))

    def whole(self, name: str) -> np.ndarray:
        return self._kept(name) if name in self.packed else self._source.whole(name)

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        if name in self.packed:
            return decode_rows(self.packed[name], ids)
        rows = self._source.rows(name, ids)
        # A table's rows are rounded one by one, so a few can be had without the others.
        return decode(encode(name, rows, self._tables[name])) if name in self._tables else rows

    def forget(self) -> None:
        self._kept.forget()


class MixedValues:
    """The source's numbers, but `stored`'s for the tensors in `names`, which may be set anew between runs.

    keep: a tensor that every run ends with, and which costs much to read: the source's is not given up.
    """

    def __init__(self, source: Values, stored: Values, keep: str) -> None:
        self.names: frozenset[str] = frozenset()
        self._source = source
        self._stored = stored
        self._keep = keep
        self._kept = Kept(source.whole)

    def whole(self, name: str) -> np.ndarray:
        if name == self._keep:
            if name not in self.names:
                return self._kept(name)
            self._kept.forget()  # rounding reads it once more: two of them as floats are enough
        return (self._stored if name in self.names else self._source).whole(name)

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        return (self._stored if name in self.names else self._source).rows(name, ids)

    def forget(self) -> None:
        self._source.forget()
        self._stored.forget()


class Products(NamedTuple):
    """By matrix name, what it was multiplied with (N, K), and, if it has fewer rows than columns, what came of it."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


class _Record(threading.local):
    """What a thread is recording. last: an input and its copy."""

    def __init__(self) -> None:
        self.products = Products({}, {})
        self.last: tuple[np.ndarray, np.ndarray] | None = None


class RecordingOps(ReferenceOps):
    """The reference backend with named weights. Several threads may run it at once.

    seen: called with the name and the input of every product.
    """

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values
        self.seen: Callable[[str, np.ndarray], None] | None = None
        self._record = _Record()
        self._looked_up: dict[str, dict[int, np.ndarray]] = {}

    def record(self) -> Products:
        """An empty record, which this thread's products go to from now on, the last of each matrix."""
        self._record.products, self._record.last = Products({}, {}), None
        return self._record.products

    def look_up(self, name: str, ids: np.ndarray) -> list[np.ndarray]:
        """Rows of a table, which are kept: every layer looks up the same tokens again."""
        kept = self._looked_up.setdefault(name, {})
        new = [each for each in np.unique(ids).tolist() if each not in kept]
        if new:
            kept.update(zip(new, self.values.rows(name, np.array(new)), strict=True))
        return [kept[each] for each in ids.tolist()]

    def forget_rows(self) -> None:
        """Give up what `look_up` kept."""
        self._looked_up.clear()

    def matrix(self, packed: PackedTensor, *, clip: Clip | None = None, bias: PackedTensor | None = None) -> Weights:
        return _Named(packed, self, clip=clip, bias=None if bias is None else self.array(bias))

    def table(self, packed: PackedTensor) -> Weights:
        return _Named(packed, self)

    def array(self, packed: PackedTensor) -> Tensor:
        return self.values.whole(packed.name)

    def linear(self, x: Tensor, matrix: Weights) -> Tensor:
        seen = x if matrix.clip is None else self.clamp(x, matrix.clip[0], matrix.clip[1])
        products = self._record.products
        products.inputs[matrix.name] = self._kept(seen)
        if self.seen is not None:
            self.seen(matrix.name, seen)
        y = super().linear(x, matrix)
        if matrix.n_rows < matrix.n_columns:
            products.outputs[matrix.name] = y.copy()  # y may be overwritten
        return y

    def _kept(self, x: np.ndarray) -> np.ndarray:
        """A copy, for x may be overwritten; one and the same for matrices that share their input."""
        last = self._record.last
        if last is None or last[0] is not x or not np.array_equal(*last):
            self._record.last = last = x, x.copy()
        return last[1]


class _Named(Weights):
    """A matrix whose numbers are looked up at each use."""

    def __init__(
        self,
        packed: PackedTensor,
        ops: RecordingOps,
        *,
        clip: Clip | None = None,
        bias: np.ndarray | None = None,
        rows: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(packed, Budget(), clip=clip, bias=bias, rows=rows)
        self._ops = ops

    def slice(self, start: int, stop: int) -> _Named:
        bias = None if self.bias is None else self.bias[start:stop]
        rows = (self._first + start, self._first + stop)
        return _Named(self._packed, self._ops, clip=self.clip, bias=bias, rows=rows)

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        yield 0, self.n_rows, self._ops.values.whole(self.name)[self._first : self._first + self.n_rows]

    def gather(self, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
        return np.stack([row[start:stop] for row in self._ops.look_up(self.name, self._first + ids)])


@dataclass(frozen=True)
class Standing:
    """A run between two layers. By piece: rows float32 (N, D), and caches by the layer that wrote them."""

    rows: list[np.ndarray]
    caches: list[dict[int, Any]]


class Stream:
    """A run of the decoder over prompts, each a sequence of its own, standing between two layers. Pieces do not know of
    each other: several threads may run one each."""

    def __init__(self, values: Values, config: TextConfig, tensors: Mapping[str, PackedTensor]) -> None:
        self.ops = RecordingOps(values)
        self._config = config
        self._decoder = LayerwiseDecoder(self.ops, config, BoundWeights(self.ops, tensors, DECODER))
        self._readers = {layer.kv_source: layer.index for layer in config.layers}  # the last layer to read a cache

    def begin(self, pieces: Sequence[Running], placeholders: set[int]) -> None:
        """Stand before the first layer with these sequences. placeholders: ids whose rows are soft tokens."""
        self.ops.forget_rows()
        pad_id = self._config.pad_token_id
        self._batches = [
            pack(self.ops, [Part(piece, piece.n_pending, piece.n_pending)], pad_id, placeholders) for piece in pieces
        ]
        self._embedded = [self._decoder.embed(batch) for batch in self._batches]
        self._rows = [x.copy() for x in self._embedded]
        self._caches: list[dict[int, Any]] = [{} for _ in pieces]

    def run(self, index: int, piece: int, *, keep: bool) -> Products:
        """Run a layer over a piece; its matrices' products. keep: go on behind the layer, else stay before it."""
        layer, batch, caches = self._config.layers[index], self._batches[piece], self._caches[piece]
        if layer.owns_kv and index not in caches:
            caches[index] = self.new_cache(index, piece)
        products = self.ops.record()
        own_input = self._decoder.own_input(index, self._embedded[piece], batch)
        x = self._rows[piece] if keep else self._rows[piece].copy()
        self._decoder.layer(index, x, own_input, batch, caches)
        if keep:
            for source in [source for source in caches if self._readers[source] <= index]:
                del caches[source]
        return products

    def own_inputs(self, piece: int) -> Products:
        """Products of the matrices that make the layers' own inputs; none in a model without."""
        products = self.ops.record()
        self._decoder.own_input(0, self._embedded[piece], self._batches[piece])
        return products

    def head_input(self, piece: int) -> np.ndarray:
        """Behind the last layer: what the output head multiplies."""
        normed: np.ndarray = self._decoder.final_norm(self._rows[piece])
        return normed

    def logits(self, piece: int, rows: np.ndarray) -> np.ndarray:
        """Behind the last layer: float32 (R, V) after the rows asked for."""
        logits: np.ndarray = self._decoder.logits(self._rows[piece][rows])
        return logits

    def standing(self) -> Standing:
        """Where the run stands: a copy of its rows, and the caches that layers to come will read."""
        return Standing([x.copy() for x in self._rows], [dict(caches) for caches in self._caches])

    def stand(self, at: Standing) -> None:
        """Go back, or on, to a place before the same layer with the same prompts."""
        self._rows = [x.copy() for x in at.rows]
        self._caches = [dict(caches) for caches in at.caches]

    def new_cache(self, index: int, piece: int) -> Any:
        """An empty cache of a layer for a piece."""
        layer = self._config.layers[index]
        return self.ops.new_cache(1, self._batches[piece].n_rows, layer.n_kv_heads, layer.head_dim)


def unread_tensors(plan: Sequence[PlannedTensor]) -> dict[str, PackedTensor]:
    """Stored tensors in name and shape alone, to bind a model to."""
    nothing = np.empty(0, np.uint8)
    return {each.spec.name: PackedTensor(each.spec.name, each.spec.shape, Coding("f32"), nothing) for each in plan}
