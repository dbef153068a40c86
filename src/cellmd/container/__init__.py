"""The .cellmd file: read by `Container.open`, written by `ContainerWriter`. `docs/format.md` is normative."""

from cellmd.container.reader import ComponentSize, Container
from cellmd.container.writer import ContainerWriter, TensorDeclaration

__all__ = ["ComponentSize", "Container", "ContainerWriter", "TensorDeclaration"]
