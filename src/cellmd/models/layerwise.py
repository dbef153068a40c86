"""The decoder one layer at a time, for tools that look into layers and change their weights on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellmd.backends.ops import Ops, Tensor
from cellmd.config import TextConfig
from cellmd.models.decoder import Batch, Decoder, PerLayerInputs
from cellmd.models.weights import Weights


class LayerwiseDecoder(Decoder):
    """`Decoder.forward` over all rows of a batch in steps: embed, own_input and layer for each layer, final_norm."""

    def __init__(self, ops: Ops, config: TextConfig, weights: Weights) -> None:
        super().__init__(ops, config, weights)
        self._blocks = [*self._early, self._last_writer, *self._late]
        self._own_inputs = []
        if config.ple_dim:
            inputs = PerLayerInputs(ops, config, weights)
            self._own_inputs = [inputs.of_layers(i, i + 1) for i in range(config.n_layers)]

    def embed(self, batch: Batch) -> Tensor:
        """The rows before the first layer, float32 (N, D), with soft tokens in their places."""
        ops = self._ops
        x = ops.embed(self._embedding, batch.ids, self._config.d_model**0.5)
        for rows, soft_tokens in batch.soft:
            ops.put_rows_(x, rows, soft_tokens)
        return x

    def own_input(self, index: int, embedded: Tensor, batch: Batch) -> Tensor | None:
        """The layer's per-layer input (N, P) from what `embed` gave; None in a model without."""
        return self._own_inputs[index](embedded, batch.ids)[0] if self._own_inputs else None

    def layer(self, index: int, x: Tensor, own_input: Tensor | None, batch: Batch, caches: Mapping[int, Any]) -> Tensor:
        """Run a layer into x (N, D) itself. caches: by layer index, at least the one that this layer reads."""
        block = self._blocks[index]
        rows = self._rows(batch.positions, batch.slots, caches)
        self._close(x, self._layer(block, block.projections, x, None, own_input, rows))
        return x

    def final_norm(self, x: Tensor) -> Tensor:
        """What the output head multiplies: (N, D)."""
        return self._ops.rms_norm(x, self._norm, self._eps)

    def logits(self, x: Tensor) -> Tensor:
        """The output head over rows behind the last layer (N, D): (N, V)."""
        logits = self._ops.linear(self.final_norm(x), self._embedding)
        return self._ops.softcap_(logits, self._config.softcap) if self._config.softcap else logits
