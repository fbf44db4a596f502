"""Gradients on fewer dimensions, so that those of many pairs fit into memory together."""

import torch

PERIOD = 1_048_583  # random signs before they repeat: a prime, and so in step with no dimension
STEP = 7_919  # between the first signs of two parameters


class Sketch:
    """Projects a gradient on few dimensions, with inner products that stay right on average.

    Entry i is multiplied by a random sign and added to dimension i modulo `dimensions`. Two
    gradients then have an inner product whose expectation over signs is their own, and whose
    standard deviation is about |x| |y| / sqrt(dimensions) (Charikar et al., 2002: count sketch).

    All gradients of one parameter are projected in the same way. A test that flips labels is as exact
    on what is projected as on the gradients themselves.

    Attributes:
        dimensions: of one parameter. A prime keeps the columns of a matrix apart. None keeps
            gradients as they are. A parameter with fewer entries is kept as it is, too.
    """

    def __init__(self, dimensions: int | None, seed: int = 0) -> None:
        self.dimensions = dimensions
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (PERIOD,), generator=generator).float() * 2 - 1
        self._signs = torch.cat([signs, signs])

    def of(self, gradient: torch.Tensor, number: int) -> torch.Tensor:
        """The projection (float32, on the CPU) of the gradient of the parameter with that number."""
        flat = gradient.flatten().float()
        size = len(flat)
        if self.dimensions is None or size <= self.dimensions:
            return flat.cpu().clone()
        self._signs = self._signs.to(flat.device)
        start = number * STEP % PERIOD
        signs = self._signs[start : start + PERIOD]
        if size > PERIOD:
            signs = signs.repeat(-(-size // PERIOD))
        padded = torch.nn.functional.pad(flat * signs[:size], (0, -size % self.dimensions))
        return padded.view(-1, self.dimensions).sum(0).cpu()
