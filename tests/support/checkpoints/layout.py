"""Tensor names and shapes of a checkpoint, under construction."""

from __future__ import annotations

Shape = tuple[int, ...]


class Layout(dict[str, Shape]):
    """Tensor names and shapes under construction, in file order."""

    def put(self, name: str, *shape: int) -> None:
        """Add one tensor; a name that is already taken is a mistake in a shape table."""
        if name in self:
            raise ValueError(f"tensor {name} is named twice")
        self[name] = shape

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        """Add a linear layer: weight [outputs, inputs], bias [outputs]."""
        self.put(f"{name}.weight", outputs, inputs)
        if bias:
            self.put(f"{name}.bias", outputs)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int = 3) -> None:
        """Add a 2-D convolution: weight [outputs, inputs, kernel, kernel], bias [outputs]."""
        self.put(f"{name}.weight", outputs, inputs, kernel, kernel)
        self.put(f"{name}.bias", outputs)

    def norm(self, name: str, width: int, *, bias: bool = True) -> None:
        """Add a normalisation's weight [width] and, but for RMS norms, its bias [width]."""
        self.put(f"{name}.weight", width)
        if bias:
            self.put(f"{name}.bias", width)

    def nest(self, prefix: str, inner: dict[str, Shape]) -> None:
        """Add a component's tensors under a prefix."""
        for name, shape in inner.items():
            self.put(prefix + name, *shape)
