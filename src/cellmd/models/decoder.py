"""The text decoder of Gemma 4, over packed rows.

A forward pass takes N rows from any number of sequences; row i is the token `ids[i]` at `positions[i]` of the sequence
in cache slot `slots[i]`. Per row, with RMS norms throughout and no biases:

    x = embedding(id) * sqrt(D), or a soft token of a picture or sound
    e = (embedding_per_layer(id) * sqrt(P) + norm(x W_p / sqrt(D))) / sqrt(2)      one part of width P for each layer
    each layer l:
        x += norm(attention(norm(x)))          q and k normed and turned by RoPE, v normed; scores not scaled
        x += norm(W_down(gelu(W_gate y) * W_up y)),  y = norm(x)
        x += norm(W_out(gelu(W_in x) * e_l))
        x *= scalar_l
    logits = cap * tanh(norm(x) E^T / cap)

The trailing layers read the keys and values that an earlier layer wrote (`LayerConfig.kv_source`). So a row whose
logits nobody wants has done its part once the last writing layer has its key and value: it goes no further
(`Batch.wanted`).

Gemma 3's text models are the same decoder without per-layer inputs, sharing, value norms and layer scalars.

Source: Gemma 4 as published in transformers, `models/gemma4/modeling_gemma4.py`, classes Gemma4Text*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from cellmd.backends.ops import Matrix, Ops, Tensor
from cellmd.config import LayerConfig, TextConfig
from cellmd.models.observe import Observe, ignore
from cellmd.models.weights import Weights

Caches = Sequence[Any] | Mapping[int, Any]
"""By layer index, the cache of every layer that writes keys and values."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one forward pass, on the backend.

    ids: int32 (N,), token ids; the pad token where a soft token lies.
    positions, slots: int32 (N,), place in the sequence and the sequence's place in the cache.
    soft: pairs of rows int32 (n,) and the soft tokens (n, D) that replace their embeddings.
    wanted: int32 (R,), rows whose logits are wanted, ascending; None for all of them.
    n_rows, n_wanted: N and R.
    apart: every row is of another sequence, or another's repetition.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    n_rows: int
    n_wanted: int
    wanted: Tensor | None = None
    soft: Sequence[tuple[Tensor, Tensor]] = ()
    apart: bool = False


class _Rows(NamedTuple):
    """What every layer needs to know of the rows. turns: a RoPE table for each kind of layer; apart: as in `Batch`."""

    n: int
    positions: Tensor
    slots: Tensor
    turns: tuple[Tensor, ...]
    caches: Caches
    observe: Observe
    apart: bool


class _OpenEnd(NamedTuple):
    """What is still to be done to close a layer: x = (x + rms_norm(y, norm)) * scale."""

    y: Tensor
    norm: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer, bound.

    turn: index of its RoPE table; cache: index of the layer whose keys and values it reads.
    queries: (q,); projections: (q, k, v) if the layer writes keys and values, else (q,).
    per_layer: gate, projection and norm of the layer's own input, None in a model without.
    """

    name: str
    input_name: str
    window: int
    turn: int
    cache: int
    q_shape: tuple[int, int]
    kv_shape: tuple[int, int]
    input_norm: Tensor
    queries: tuple[Matrix, ...]
    projections: tuple[Matrix, ...]
    q_norm: Tensor
    k_norm: Tensor | None
    output: Matrix
    attention_norm: Tensor
    ffn_norm: Tensor
    gate_up: tuple[Matrix, Matrix]
    down: Matrix
    ffn_out_norm: Tensor
    per_layer: tuple[Matrix, Matrix, Tensor] | None
    scale: float


class Decoder:
    """The decoder with its weights bound to a backend. It keeps no state between passes: caches are the caller's."""

    def __init__(self, ops: Ops, config: TextConfig, weights: Weights) -> None:
        self._ops = ops
        self._config = config
        self._eps = config.norm_eps
        last_writer = config.first_shared_layer - 1
        of_layers = PerLayerInputs(ops, config, weights).of_layers if config.ple_dim else _no_inputs
        self._early_inputs, self._late_inputs = of_layers(0, last_writer), of_layers(last_writer, config.n_layers)
        self._embedding = ops.matrix(weights.stored("embed_tokens.weight"))
        self._norm = weights.norm("norm")
        self._turns = tuple(dict.fromkeys(_turn(layer) for layer in config.layers))
        blocks = [
            _bind(config, layer, self._turns.index(_turn(layer)), weights.under(f"layers.{layer.index}."))
            for layer in config.layers
        ]
        self._early, self._last_writer, self._late = (
            blocks[:last_writer],
            blocks[last_writer],
            blocks[last_writer + 1 :],
        )

    def forward(
        self, batch: Batch, caches: Caches, observe: Observe = ignore, key: object | None = None
    ) -> Tensor | None:
        """Run the rows of a batch; logits float32 (R, V) of the wanted ones, None if there are none.

        caches: by layer index, the cache of every layer that writes keys and values (anything for the others).
        key: stands for this decoder and these caches, for `Ops.replay` of what is done where some logits are unwanted.
        """
        ops, at = self._ops, (batch.ids, batch.positions, batch.slots)
        ops.begin()
        x = ops.embed(self._embedding, batch.ids, self._config.d_model**0.5)
        for rows, soft_tokens in batch.soft:
            ops.put_rows_(x, rows, soft_tokens)
        observe("embedded", x)
        if batch.wanted is None:
            return self._all(x, batch.ids, self._rows(*at[1:], caches, observe, batch.apart))

        def run(name: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
            work = partial(function, caches=caches, observe=observe)
            return work(*inputs) if key is None or observe is not ignore else ops.replay(key, name, work, inputs)

        embedded = ops.take_rows(x, batch.wanted) if batch.n_wanted else None
        x = run("writing", self._write, x, *at)
        if embedded is None:
            return None
        wanted = (ops.take_rows(each, batch.wanted) for each in (x, *at))
        return run("answering", self._answer, embedded, *wanted)

    def _all(self, x: Tensor, ids: Tensor, rows: _Rows) -> Tensor:
        """Logits of all rows, from their embeddings."""
        late_inputs = self._late_inputs(x, ids)
        open_end = self._layers(self._early, self._early_inputs(x, ids), x, None, rows)
        block = self._last_writer
        open_end = self._layer(block, block.projections, x, open_end, late_inputs[0], rows)
        return self._logits(x, open_end, late_inputs[1:], rows)

    def _write(
        self, x: Tensor, ids: Tensor, positions: Tensor, slots: Tensor, caches: Caches, observe: Observe
    ) -> Tensor:
        """What is done for every row, from its embedding: all keys and values are written. x before the layer that
        writes the last of them."""
        rows, block = self._rows(positions, slots, caches, observe), self._last_writer
        open_end = self._layers(self._early, self._early_inputs(x, ids), x, None, rows)
        self._append(block, self._projected(x, open_end, block, block.projections[1:]), rows)
        return x

    def _answer(
        self,
        embedded: Tensor,
        x: Tensor,
        ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        caches: Caches,
        observe: Observe,
    ) -> Tensor:
        """Logits of rows whose keys and values are written, from their embeddings and from x of `_write`."""
        rows, block = self._rows(positions, slots, caches, observe), self._last_writer
        late_inputs = self._late_inputs(embedded, ids)
        open_end = self._layer(block, block.queries, x, None, late_inputs[0], rows)
        return self._logits(x, open_end, late_inputs[1:], rows)

    def _logits(
        self,
        x: Tensor,
        open_end: _OpenEnd | None,
        inputs: Sequence[Tensor | None],
        rows: _Rows,
    ) -> Tensor:
        """The layers that write nothing, and the head."""
        open_end = self._layers(self._late, inputs, x, open_end, rows)
        self._close(x, open_end)
        return self._ops.norm_logits(x, self._norm, self._eps, self._embedding, self._config.softcap or 0.0)

    def _layers(
        self,
        blocks: Sequence[_Block],
        inputs: Sequence[Tensor | None],
        x: Tensor,
        open_end: _OpenEnd | None,
        rows: _Rows,
    ) -> _OpenEnd | None:
        """Layers that do all they can do, one after another; see `_layer`."""
        for block, own_input in zip(blocks, inputs, strict=True):
            open_end = self._layer(block, block.projections, x, open_end, own_input, rows)
        return open_end

    def _rows(
        self, positions: Tensor, slots: Tensor, caches: Caches, observe: Observe = ignore, apart: bool = False
    ) -> _Rows:
        turns = tuple(self._ops.rope_table(positions, *turn) for turn in self._turns)
        return _Rows(positions.shape[0], positions, slots, turns, caches, observe, apart)

    def _append(self, block: _Block, written: Sequence[Tensor], rows: _Rows) -> None:
        ops, shape = self._ops, (rows.n, *block.kv_shape)
        keys, values = (ops.reshape(y, shape) for y in written)
        turns = rows.turns[block.turn]
        cache = rows.caches[block.cache]
        if self._config.values_normed:
            ops.append_normed_(cache, keys, values, block.k_norm, self._eps, turns, rows.slots, rows.positions)
        else:
            keys = ops.norm_rope(keys, block.k_norm, self._eps, turns)
            ops.append_(cache, keys, values, rows.slots, rows.positions)

    def _projected(
        self, x: Tensor, open_end: _OpenEnd | None, block: _Block, projections: tuple[Matrix, ...]
    ) -> tuple[Tensor, ...]:
        """Products of the normed rows, once the layer before is closed."""
        if open_end is None:
            return self._ops.norm_linears(x, block.input_norm, self._eps, projections)
        return self._ops.add_norm_norm_linears_(x, *open_end, block.input_norm, self._eps, projections)

    def _close(self, x: Tensor, open_end: _OpenEnd | None) -> None:
        if open_end is not None:
            self._ops.add_norm_(x, open_end.y, open_end.norm, self._eps, open_end.scale)

    def _layer(
        self,
        block: _Block,
        projections: tuple[Matrix, ...],
        x: Tensor,
        open_end: _OpenEnd | None,
        own_input: Tensor | None,
        rows: _Rows,
    ) -> _OpenEnd | None:
        """One layer, into x (N, D) itself. projections: the block's q, k and v, or q alone to write nothing. open_end:
        of the layer before. Its own is left open for the next layer too, unless somebody observes."""
        ops, eps = self._ops, self._eps
        y = self._attended(block, self._projected(x, open_end, block, projections), rows)
        ffn = *block.gate_up, block.down
        y, norm = ops.add_norm_norm_ffn_(x, y, block.attention_norm, block.ffn_norm, eps, *ffn), block.ffn_out_norm
        if block.per_layer is not None:
            rows.observe(block.input_name, own_input)
            gate_in, projection, own_norm = block.per_layer
            gated = ops.add_norm_gate_(x, y, norm, eps, gate_in, own_input)
            y, norm = ops.last_linear(gated, projection), own_norm
        end = _OpenEnd(y, norm, block.scale)
        if rows.observe is ignore:
            return end
        self._close(x, end)
        rows.observe(block.name, x)
        return None

    def _attended(self, block: _Block, products: tuple[Tensor, ...], rows: _Rows) -> Tensor:
        """The attention of a layer from its projections: what is added to x once it is normed."""
        ops = self._ops
        queries, *written = products
        if written and not self._config.values_normed:
            self._append(block, written, rows)
            written = []
        return ops.attend_(
            rows.caches[block.cache],
            ops.reshape(queries, (rows.n, *block.q_shape)),
            block.q_norm,
            [ops.reshape(product, (rows.n, *block.kv_shape)) for product in written],
            block.k_norm,
            self._eps,
            rows.turns[block.turn],
            rows.slots,
            rows.positions,
            block.window,
            block.output,
            apart=rows.apart,
        )


class PerLayerInputs:
    """Small embeddings of every token for each layer, from the token's identity and its embedding."""

    def __init__(self, ops: Ops, config: TextConfig, weights: Weights) -> None:
        self._ops = ops
        self._config = config
        self._table = weights.table("embed_tokens_per_layer.weight")
        self._projection = weights.matrix("per_layer_model_projection")
        self._norm = weights.norm("per_layer_projection_norm")

    def of_layers(self, first: int, last: int) -> Inputs:
        """For the layers first .. last."""
        ops, config = self._ops, self._config
        width = config.ple_dim
        aligned_first = next(layer for layer in range(first, -1, -1) if layer * width % _CUT == 0)
        aligned_last = next((i for i in range(last, config.n_layers) if i * width % _CUT == 0), config.n_layers)
        start = aligned_first * width
        projection = ops.rows_of(self._projection, start, aligned_last * width)
        columns = [((i - aligned_first) * width, (i - aligned_first + 1) * width) for i in range(first, last)]

        def inputs(x: Tensor, ids: Tensor) -> Sequence[Tensor]:
            both = ops.norm_add_embed(
                ops.linear(x, projection),
                config.d_model**-0.5,
                self._norm,
                config.norm_eps,
                self._table,
                ids,
                width**0.5,
                start,
                2.0**-0.5,
            )
            return [ops.columns(both, *span) for span in columns]

        return inputs if columns else lambda x, ids: []


Inputs = Callable[[Tensor, Tensor], Sequence[Tensor | None]]
"""From the embedded rows x (N, D) and their ids (N,), the inputs of some layers: a view (N, P) each, None in a model
without."""

_CUT = 16
"""A matrix is cut at multiples of this many outputs (`Ops.rows_of`)."""


def _no_inputs(first: int, last: int) -> Inputs:
    return lambda x, ids: [None] * (last - first)


def _turn(layer: LayerConfig) -> tuple[float, int, int, float]:
    """Arguments of `Ops.rope_table` for a layer."""
    return layer.rope_base, layer.rotary_dim, layer.head_dim, layer.rope_stretch


def _bind(config: TextConfig, layer: LayerConfig, turn: int, weights: Weights) -> _Block:
    queries = (weights.matrix("self_attn.q_proj"),)
    written = (weights.matrix("self_attn.k_proj"), weights.matrix("self_attn.v_proj")) if layer.owns_kv else ()
    per_layer = None
    if config.ple_dim:
        matrices = weights.matrix("per_layer_input_gate"), weights.matrix("per_layer_projection")
        per_layer = (*matrices, weights.norm("post_per_layer_input_norm"))
    return _Block(
        name=f"layer.{layer.index}",
        input_name=f"per_layer_input.{layer.index}",
        window=layer.window,
        turn=turn,
        cache=layer.kv_source,
        q_shape=(config.n_heads, layer.head_dim),
        kv_shape=(layer.n_kv_heads, layer.head_dim),
        input_norm=weights.norm("input_layernorm"),
        queries=queries,
        projections=(*queries, *written),
        q_norm=weights.norm("self_attn.q_norm"),
        k_norm=weights.norm("self_attn.k_norm") if layer.owns_kv else None,
        output=weights.matrix("self_attn.o_proj"),
        attention_norm=weights.norm("post_attention_layernorm"),
        ffn_norm=weights.norm("pre_feedforward_layernorm"),
        gate_up=(weights.matrix("mlp.gate_proj"), weights.matrix("mlp.up_proj")),
        down=weights.matrix("mlp.down_proj"),
        ffn_out_norm=weights.norm("post_feedforward_layernorm"),
        per_layer=per_layer,
        scale=weights.scalar("layer_scalar") if config.layer_scalars else 1.0,
    )
