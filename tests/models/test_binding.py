"""When weights are bound: the decoder's at once, a tower's with the first picture or sound, each of them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import model_cases
from cellmd.backends.reference.operations import ReferenceOps
from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.models.gemma4 import Gemma4
from cellmd.quant.tensor import PackedTensor


class WatchedOps(ReferenceOps):
    """Knows what was expected and what has been bound, and that nothing is bound out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[str] = []
        self.bound: list[str] = []
        self._open: set[str] = set()

    def expect(self, tensors: Iterable[PackedTensor]) -> None:
        self.expected += [packed.name for packed in tensors]

    @contextmanager
    def binding(self, tensors: Iterable[PackedTensor]) -> Iterator[None]:
        self._open = {packed.name for packed in tensors}
        yield
        assert not self._open, "left unbound"

    def _bind(self, packed: PackedTensor) -> None:
        self._open.remove(packed.name)
        self.bound.append(packed.name)

    def matrix(self, packed: PackedTensor, **how: Any) -> Any:
        self._bind(packed)
        return super().matrix(packed, **how)

    def table(self, packed: PackedTensor) -> Any:
        self._bind(packed)
        return super().table(packed)

    def array(self, packed: PackedTensor) -> Any:
        self._bind(packed)
        return super().array(packed)


def test_towers_are_bound_when_they_are_needed(tmp_path: Path) -> None:
    with Container.open(model_cases.build(tmp_path, "tiny")) as container:
        ops, config = WatchedOps(), ModelConfig.from_dict(container.config)
        model = Gemma4(ops, config, container.tensors)
        assert sorted(ops.expected) == sorted(container.tensors)
        assert {name.split(".")[1] for name in ops.bound} == {"language_model"}
        assert config.vision is not None
        pooling = config.vision.pooling
        for _ in range(2):
            model.encode_image(model_cases.picture_of(config.vision.patch_size, pooling, pooling, 1))
        assert {name.split(".")[1] for name in ops.bound} == {"language_model", "vision_tower", "embed_vision"}
        for _ in range(2):
            model.encode_audio(model_cases.sound(8))
        assert sorted(ops.bound) == sorted(container.tensors)
