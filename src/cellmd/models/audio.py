"""The audio tower of Gemma 4, a conformer: log-mel frames of one sound to soft tokens.

Two 3 x 3 convolutions of stride 2, each with a layer norm over its channels and a ReLU, leave a quarter of the frames;
a projection makes them rows x (T, D). Each layer, with W clipped linear layers and r the residual weight:
    x += r * norm(W silu(W norm(x)))
    x += norm(W attention(norm(x)))
    x += W silu(norm(conv(glu(W norm(x)))))           conv: causal, each channel for itself
    x += r * norm(W silu(W norm(x)))
    x  = norm(x)
A last projection and, after a norm, one more to the decoder's width give a soft token a row.

Attention is local and knows distances. With L left_context, R right_context, S chunk_size: row i sees row j, at the
distance d = i - j, if 0 <= d < L - 1 or 0 < -d < R. Queries are scaled by softplus(per_dim_scale) / (ln 2 sqrt(hd)),
keys by ln(1 + e) / ln 2. The reference computes in chunks of S rows, of which only the count of distances that have a
relative key remains: with C = S + L - 1 + R, key index p = L - 1 - d exists for p <= C // 2, and is W_r of the
sinusoids of C // 2 - p.

Source: transformers, `models/gemma4/modeling_gemma4.py`, classes Gemma4Audio* and Gemma4MultimodalEmbedder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cellmd.backends.ops import Matrix, Ops, Tensor
from cellmd.config import AudioConfig
from cellmd.models.observe import Observe, ignore
from cellmd.models.weights import Weights

if TYPE_CHECKING:
    from cellmd.processors.features import AudioFeatures

_PLAIN_EPS = 1e-6
"""The reference gives the norms of attention and feed-forward parts its default, whatever the configuration says."""

_KEY_SCALE = math.log(1 + math.e) / math.log(2)


@dataclass(frozen=True, slots=True)
class _FeedForward:
    norm: Tensor
    up: Matrix
    down: Matrix
    out_norm: Tensor


@dataclass(frozen=True, slots=True)
class _Block:
    """query_scale: (hd,), the factor of each channel of a query."""

    name: str
    first: _FeedForward
    attention_norm: Tensor
    q_k_v: tuple[Matrix, Matrix, Matrix]
    query_scale: Tensor
    relative_keys: Matrix
    output: Matrix
    attention_out_norm: Tensor
    conv_in_norm: Tensor
    conv_in: Matrix
    conv: Tensor
    conv_norm: Tensor
    conv_out: Matrix
    second: _FeedForward
    out_norm: Tensor


class AudioTower:
    """tower: the tensors of `model.audio_tower.`; embedder: those of `model.embed_audio.`."""

    def __init__(self, ops: Ops, config: AudioConfig, tower: Weights, embedder: Weights) -> None:
        self._ops = ops
        self._config = config
        subsampling = tower.under("subsample_conv_projection.")
        self._convs = tuple(
            (subsampling.norm(f"layer{i}.conv"), subsampling.norm(f"layer{i}.norm"), channels)
            for i, channels in enumerate(config.conv_channels)
        )
        self._input = subsampling.matrix("input_proj_linear")
        self._distances = ops.floats(_sinusoids(config))
        self._blocks = [_bind(config, i, tower.under(f"layers.{i}.")) for i in range(config.n_layers)]
        self._output = tower.matrix("output_proj", bias="output_proj.bias")
        self._projection = embedder.matrix("embedding_projection")

    def encode(self, sound: AudioFeatures, observe: Observe = ignore) -> Tensor:
        """Soft tokens float32 (a quarter of the frames, rounded up, D of the decoder), valid until the backend's next
        `begin`."""
        work, log_mel = partial(self._encode, observe=observe), self._ops.floats(sound.log_mel)
        return work(log_mel) if observe is not ignore else self._ops.replay_whole(self, "sound", work, (log_mel,))

    def _encode(self, log_mel: Tensor, observe: Observe) -> Tensor:
        ops, config = self._ops, self._config
        n_frames, n_bins = log_mel.shape
        x = ops.reshape(log_mel, (n_frames, n_bins, 1))
        for kernel, norm, channels in self._convs:
            x = ops.conv2d(x, kernel)
            n_frames, n_bins = (n_frames + 1) // 2, (n_bins + 1) // 2
            rows = ops.layer_norm(ops.reshape(x, (n_frames * n_bins, channels)), norm, config.norm_eps)
            x = ops.reshape(ops.relu(rows), (n_frames, n_bins, channels))
        x = ops.linear(ops.reshape(x, (n_frames, n_bins * config.conv_channels[-1])), self._input)
        observe("embedded", x)
        for block in self._blocks:
            x = self._layer(block, x, n_frames)
            observe(block.name, x)
        x = ops.linear(x, self._output)
        observe("encoded", x)
        return ops.linear(ops.rms_norm(x, None, config.norm_eps), self._projection)

    def _layer(self, block: _Block, x: Tensor, n: int) -> Tensor:
        """One layer: x (n, D) is used up, the result is another tensor."""
        ops, config = self._ops, self._config
        self._feed_forward(block.first, x)
        y = ops.rms_norm(self._bounded(x), block.attention_norm, _PLAIN_EPS)
        y = ops.linear(self._attend(block, ops.linears(y, block.q_k_v), n), block.output)
        ops.add_norm_(x, self._bounded(y), block.attention_out_norm, _PLAIN_EPS)
        y = ops.rms_norm(x, block.conv_in_norm, config.norm_eps)
        y = ops.depthwise_conv1d(ops.glu(ops.linear(y, block.conv_in)), block.conv)
        y = ops.silu(ops.rms_norm(self._bounded(y), block.conv_norm, config.norm_eps))
        ops.add_(x, ops.linear(y, block.conv_out))
        self._feed_forward(block.second, x)
        return ops.rms_norm(self._bounded(x), block.out_norm, _PLAIN_EPS)

    def _feed_forward(self, block: _FeedForward, x: Tensor) -> None:
        ops = self._ops
        y = ops.rms_norm(self._bounded(x), block.norm, _PLAIN_EPS)
        y = ops.linear(ops.silu(ops.linear(y, block.up)), block.down)
        ops.add_(x, ops.rms_norm(self._bounded(y), block.out_norm, _PLAIN_EPS), self._config.residual_weight)

    def _attend(self, block: _Block, q_k_v: tuple[Tensor, ...], n: int) -> Tensor:
        ops, config = self._ops, self._config
        n_heads, head_dim = config.n_heads, config.d_model // config.n_heads
        q, k, v = q_k_v
        q = ops.affine(ops.reshape(q, (n * n_heads, head_dim)), block.query_scale, 0.0)
        k = ops.scale_(k, _KEY_SCALE)
        relative_keys = ops.linear(self._distances, block.relative_keys)
        heads = (n, n_heads, head_dim)
        attended = ops.attention_relative(
            ops.reshape(q, heads),
            ops.reshape(k, heads),
            ops.reshape(v, heads),
            ops.reshape(relative_keys, (_last_key(config) + 1, n_heads, head_dim)),
            past=config.left_context - 1,
            future=config.right_context,
            cap=config.logit_cap,
        )
        return ops.reshape(attended, (n, n_heads * head_dim))

    def _bounded(self, x: Tensor) -> Tensor:
        bound = self._config.gradient_clipping
        return self._ops.clamp(x, -bound, bound)


def _last_key(config: AudioConfig) -> int:
    """The last index of the relative keys, C // 2."""
    return (config.chunk_size + config.left_context - 1 + config.right_context) // 2


def _sinusoids(config: AudioConfig) -> list[list[float]]:
    """Row p: sines, then cosines of (C // 2 - p) / 10000^(i / (D / 2 - 1))."""
    half = config.d_model // 2
    step = math.log(10_000.0) / max(half - 1, 1)
    last = _last_key(config)
    angles = [[(last - p) * math.exp(-i * step) for i in range(half)] for p in range(last + 1)]
    return [[*(math.sin(a) for a in row), *(math.cos(a) for a in row)] for row in angles]


def _query_scale(config: AudioConfig, weights: Weights) -> Tensor:
    ops = weights.ops
    per_dim = ops.to_numpy(weights.array("self_attn.per_dim_scale")).tolist()
    scale = (config.d_model // config.n_heads) ** -0.5 / math.log(2)
    return ops.floats([scale * (max(value, 0.0) + math.log1p(math.exp(-abs(value)))) for value in per_dim])


def _bind(config: AudioConfig, index: int, weights: Weights) -> _Block:
    def linear(name: str) -> Matrix:
        return weights.clippable(name, config.clipped)

    def feed_forward(name: str) -> _FeedForward:
        return _FeedForward(
            norm=weights.norm(f"{name}.pre_layer_norm"),
            up=linear(f"{name}.ffw_layer_1"),
            down=linear(f"{name}.ffw_layer_2"),
            out_norm=weights.norm(f"{name}.post_layer_norm"),
        )

    return _Block(
        name=f"layer.{index}",
        first=feed_forward("feed_forward1"),
        attention_norm=weights.norm("norm_pre_attn"),
        q_k_v=(linear("self_attn.q_proj"), linear("self_attn.k_proj"), linear("self_attn.v_proj")),
        query_scale=_query_scale(config, weights),
        relative_keys=weights.matrix("self_attn.relative_k_proj"),
        output=linear("self_attn.post"),
        attention_out_norm=weights.norm("norm_post_attn"),
        conv_in_norm=weights.norm("lconv1d.pre_layer_norm"),
        conv_in=linear("lconv1d.linear_start"),
        conv=weights.ops.reshape(weights.norm("lconv1d.depthwise_conv1d"), (config.d_model, config.conv_kernel)),
        conv_norm=weights.norm("lconv1d.conv_norm"),
        conv_out=linear("lconv1d.linear_end"),
        second=feed_forward("feed_forward2"),
        out_norm=weights.norm("norm_out"),
    )
