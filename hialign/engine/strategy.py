"""A block of a model with its adapter, in training and afterwards."""

from dataclasses import dataclass, field


@dataclass
class Strategy:
    """A block in training: its adapter, and the sums over the current optimizer step.

    `sums` has the keys of `LOGGED`. `period` is LISA's: the number of optimizer steps between two
    draws of the layers that are tuned. It is None for a block that always tunes all its layers.
    `rate` is its learning rate as a multiple of the training's.
    """

    block: str
    layers: list[int]
    adapter: str
    period: int | None = None
    rate: float = 1.0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """The first adapted layer. All layers below it are the base model's."""
        return min(self.layers)
