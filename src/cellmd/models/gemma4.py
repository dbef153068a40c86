"""The whole model: decoder and towers with their weights bound to one backend.

A tower is bound with the first picture or sound: until then it takes neither time nor the backend's memory, which is
only known to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from cellmd.backends.ops import Ops, Tensor
from cellmd.config import ModelConfig
from cellmd.errors import PromptError
from cellmd.models.audio import AudioTower
from cellmd.models.decoder import Batch, Decoder
from cellmd.models.observe import Observe, ignore
from cellmd.models.vision import VisionTower
from cellmd.models.weights import Weights
from cellmd.quant.tensor import PackedTensor

if TYPE_CHECKING:
    from cellmd.processors.features import AudioFeatures, ImageFeatures

_Config = TypeVar("_Config")
_Tower = TypeVar("_Tower")
_MakeTower = Callable[[Ops, _Config, Weights, Weights], _Tower]


class Gemma4:
    """tensors: by their published names, every one the configuration implies (text-only files use the same names)."""

    def __init__(self, ops: Ops, config: ModelConfig, tensors: Mapping[str, PackedTensor]) -> None:
        self.ops = ops
        self.config = config
        self._weights = Weights(ops, tensors, "model.")
        ops.expect(tensors.values())
        decoder = self._weights.under("language_model.")
        with ops.binding(decoder.tensors()):
            self._decoder = Decoder(ops, config.text, decoder)

    def forward(
        self, batch: Batch, caches: Sequence[Any], observe: Observe = ignore, key: object | None = None
    ) -> Tensor | None:
        """Logits float32 (R, V) of the wanted rows, valid until the next pass of any kind; None if none are wanted.
        Arguments as for `Decoder.forward`."""
        return self._decoder.forward(batch, caches, observe, key)

    def encode_image(self, image: ImageFeatures, observe: Observe = ignore) -> Tensor:
        """Soft tokens float32 (n_soft_tokens, D) of a picture or film frame, which last."""
        self.ops.begin()
        return self.ops.keep(self._vision.encode(image, observe))

    def encode_audio(self, sound: AudioFeatures, observe: Observe = ignore) -> Tensor:
        """Soft tokens float32 (n_soft_tokens, D) of a sound of at most 30 s, which last."""
        self.ops.begin()
        return self.ops.keep(self._audio.encode(sound, observe))

    @cached_property
    def _vision(self) -> VisionTower:
        if self.config.vision is None:
            raise PromptError("this model has no vision tower; take the picture or film out of the prompt")
        return self._bound(VisionTower, self.config.vision, "vision")

    @cached_property
    def _audio(self) -> AudioTower:
        if self.config.audio is None:
            raise PromptError("this model has no audio tower; take the sound out of the prompt")
        return self._bound(AudioTower, self.config.audio, "audio")

    def _bound(self, tower: _MakeTower[_Config, _Tower], config: _Config, kind: str) -> _Tower:
        own, embedder = self._weights.under(f"{kind}_tower."), self._weights.under(f"embed_{kind}.")
        with self.ops.binding([*own.tensors(), *embedder.tensors()]):
            return tower(self.ops, config, own, embedder)
