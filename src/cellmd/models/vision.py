"""The vision tower of Gemma 4: patches of one picture to soft tokens.

A picture is a row-major grid of patches; patch (column a, row b) starts as W (2 p - 1) + X[a] + Y[b]. Each layer is
    x += norm(attention(norm(x)));  x += norm(W_down(gelu(W_gate y) * W_up y)),  y = norm(x)
with every patch seeing every other, q, k and v normed, and q and k turned by RoPE, half of each head's channels by the
column and half by the row. Every linear layer of it may clip its inputs and outputs. Then blocks of k x k patches are
averaged, scaled by sqrt(D), optionally standardised, normed and projected to the decoder's width.

Source: transformers, `models/gemma4/modeling_gemma4.py`, classes Gemma4Vision* and Gemma4MultimodalEmbedder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cellmd.backends.ops import Matrix, Ops, Tensor
from cellmd.config import VisionConfig
from cellmd.models.observe import Observe, ignore
from cellmd.models.weights import Weights

if TYPE_CHECKING:
    from cellmd.processors.features import ImageFeatures


@dataclass(frozen=True, slots=True)
class _Block:
    name: str
    input_norm: Tensor
    q_k_v: tuple[Matrix, Matrix, Matrix]
    q_norm: Tensor
    k_norm: Tensor
    output: Matrix
    attention_norm: Tensor
    ffn_norm: Tensor
    gate_up: tuple[Matrix, Matrix]
    down: Matrix
    ffn_out_norm: Tensor


class VisionTower:
    """tower: the tensors of `model.vision_tower.`; embedder: those of `model.embed_vision.`."""

    def __init__(self, ops: Ops, config: VisionConfig, tower: Weights, embedder: Weights) -> None:
        self._ops = ops
        self._config = config
        self._patches = tower.matrix("patch_embedder.input_proj")
        self._positions = tower.table("patch_embedder.position_embedding_table")
        self._blocks = [_bind(config, i, tower.under(f"encoder.layers.{i}.")) for i in range(config.n_layers)]
        self._standardize = None
        if config.standardize:
            self._standardize = ops.scale_(tower.array("std_bias"), -1.0), tower.array("std_scale")
        self._projection = embedder.matrix("embedding_projection")

    def encode(self, image: ImageFeatures, observe: Observe = ignore) -> Tensor:
        """Soft tokens float32 (n_patches / pooling^2, D of the decoder), valid until the backend's next `begin`."""
        ops, width = self._ops, image.grid_width
        places = [divmod(i, width) for i in range(image.grid_height * width)]
        inputs = (
            ops.floats(image.patches),
            ops.ints([column for _, column in places]),
            ops.ints([row for row, _ in places]),
            ops.ints([self._config.position_table_size + row for row, _ in places]),
        )
        work = partial(self._encode, width=width, observe=observe)
        return work(*inputs) if observe is not ignore else ops.replay_whole(self, width, work, inputs)

    def _encode(
        self, patches: Tensor, columns: Tensor, rows: Tensor, rows_of_table: Tensor, width: int, observe: Observe
    ) -> Tensor:
        """patches (n, 3 * patch_size^2) in a grid of so many columns, and where each lies: int32 (n,); the second half
        of the position table is for rows."""
        ops, config = self._ops, self._config
        n_patches = patches.shape[0]
        x = ops.linear(ops.affine(patches, 2.0, -0.5), self._patches)
        ops.add_(x, ops.embed(self._positions, columns, 1.0))
        ops.add_(x, ops.embed(self._positions, rows_of_table, 1.0))
        observe("embedded", x)
        half = config.head_dim // 2
        turns = (
            ops.rope_table(columns, config.rope_base, half, half),
            ops.rope_table(rows, config.rope_base, half, half),
        )
        for block in self._blocks:
            self._layer(block, x, n_patches, turns, observe)

        x = ops.scale_(ops.pool_patches(x, width, config.pooling), config.d_model**0.5)
        if self._standardize is not None:
            minus_bias, scale = self._standardize
            x = ops.affine(x, scale, minus_bias)
        observe("pooled", x)
        return ops.linear(ops.rms_norm(x, None, config.norm_eps), self._projection)

    def _layer(self, block: _Block, x: Tensor, n: int, turns: tuple[Tensor, Tensor], observe: Observe) -> None:
        """One layer, into x (n, D) itself."""
        ops, config = self._ops, self._config
        eps, heads = config.norm_eps, (n, config.n_heads, config.head_dim)
        q, k, v = (ops.reshape(y, heads) for y in ops.norm_linears(x, block.input_norm, eps, block.q_k_v))
        q = ops.norm_rope_2d(q, block.q_norm, eps, *turns)
        k = ops.norm_rope_2d(k, block.k_norm, eps, *turns)
        attended = ops.attention_bidirectional(q, k, ops.rms_norm(v, None, eps))
        attended = ops.reshape(attended, (n, config.n_heads * config.head_dim))
        ops.add_norm_(x, ops.linear(attended, block.output), block.attention_norm, eps)
        y = ops.linear(ops.norm_geglu(x, block.ffn_norm, eps, *block.gate_up), block.down)
        ops.add_norm_(x, y, block.ffn_out_norm, eps)
        observe(block.name, x)


def _bind(config: VisionConfig, index: int, weights: Weights) -> _Block:
    def linear(name: str) -> Matrix:
        return weights.clippable(name, config.clipped)

    return _Block(
        name=f"layer.{index}",
        input_norm=weights.norm("input_layernorm"),
        q_k_v=(linear("self_attn.q_proj"), linear("self_attn.k_proj"), linear("self_attn.v_proj")),
        q_norm=weights.norm("self_attn.q_norm"),
        k_norm=weights.norm("self_attn.k_norm"),
        output=linear("self_attn.o_proj"),
        attention_norm=weights.norm("post_attention_layernorm"),
        ffn_norm=weights.norm("pre_feedforward_layernorm"),
        gate_up=(linear("mlp.gate_proj"), linear("mlp.up_proj")),
        down=linear("mlp.down_proj"),
        ffn_out_norm=weights.norm("post_feedforward_layernorm"),
    )
