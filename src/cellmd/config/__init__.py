"""The published config keys in, frozen facts out.

`ModelConfig.from_dict` takes the content of a checkpoint's config.json and gives immutable dataclasses in cellmd's own
names (`facts`). Whatever differs from layer to layer is a field of `LayerConfig`, so that no later code asks which kind
of layer it is in; what differs between the families is a field of `TextConfig`. Every value is checked while it is read
(`keys`), for a configuration may come out of a stranger's file.
"""

from cellmd.config.facts import AudioConfig, LayerConfig, SpecialTokens, TextConfig, VisionConfig
from cellmd.config.model import ModelConfig

__all__ = ["AudioConfig", "LayerConfig", "ModelConfig", "SpecialTokens", "TextConfig", "VisionConfig"]
