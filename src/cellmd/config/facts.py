"""What the rest of cellmd knows of a model: frozen, checked, in cellmd's own names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerConfig:
    """Facts of one decoder layer.

    window: number of last positions a query sees, itself included; 0 sees all.
    kv_source: index of the layer whose keys and values this one reads; its own index if it writes them.
    rotary_dim: how many of head_dim's channels turn; channel i pairs with i + head_dim // 2 for i < rotary_dim // 2.
    rope_stretch: what all turning frequencies are divided by.
    """

    index: int
    window: int
    head_dim: int
    n_kv_heads: int
    kv_source: int
    rope_base: float
    rotary_dim: int
    ffn_dim: int
    rope_stretch: float = 1.0

    @property
    def owns_kv(self) -> bool:
        return self.kv_source == self.index


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `ple_dim` is 0 for a model without per-layer embeddings; `softcap` is 0.0 for none.

    values_normed: attention values pass an RMS norm without weights. layer_scalars: each layer ends in a stored factor.
    norm_offset, query_scale: what a checkpoint's norm weights lack, and what its query norms must still be multiplied
    by so that scores need no scale. Conversion works both into the weights; a .cellmd file needs neither.
    """

    vocab_size: int
    d_model: int
    n_heads: int
    layers: tuple[LayerConfig, ...]
    ple_dim: int
    ple_vocab_size: int
    norm_eps: float
    softcap: float
    context_length: int
    pad_token_id: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    values_normed: bool = True
    layer_scalars: bool = True
    norm_offset: float = 0.0
    query_scale: float = 1.0

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def first_shared_layer(self) -> int:
        """Index of the first of the trailing layers that write no keys and values; n_layers if all write."""
        shared = [layer.index for layer in self.layers if not layer.owns_kv]
        return shared[0] if shared else self.n_layers


@dataclass(frozen=True)
class VisionConfig:
    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    ffn_dim: int
    patch_size: int
    pooling: int
    position_table_size: int
    rope_base: float
    norm_eps: float
    clipped: bool
    standardize: bool


@dataclass(frozen=True)
class AudioConfig:
    """The conformer. `left_context` counts the query itself: a query sees left_context - 1 frames before it... see
    `models/audio.py`. `out_dim` is the width of `output_proj`, before the projection into the decoder."""

    d_model: int
    n_layers: int
    n_heads: int
    conv_channels: tuple[int, int]
    conv_kernel: int
    residual_weight: float
    chunk_size: int
    left_context: int
    right_context: int
    logit_cap: float
    gradient_clipping: float
    norm_eps: float
    out_dim: int
    clipped: bool


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the placeholder and bracket tokens of media; None where the model has no such modality."""

    image: int | None
    audio: int | None
    video: int | None
    begin_image: int | None
    end_image: int | None
    begin_audio: int | None
    end_audio: int | None
