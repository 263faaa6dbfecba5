"""Edges of a picture, as ControlNets are trained on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def find_edges(image: Image.Image, low: float, high: float) -> Image.Image:
    """Return the edges of an RGB picture, white on black, in a picture of the same size.

    J. Canny, "A Computational Approach to Edge Detection", IEEE PAMI 8(6), 1986, in the variant of OpenCV's ``Canny``
    (https://docs.opencv.org/4.x/da/d22/tutorial_py_canny.html), with which the pictures were made that ControlNets are
    trained on: Sobel derivatives of 3 x 3 pixels, their absolute values added, in each pixel those of the channel where
    that is largest; maxima along the gradient; and of them what is above *high*, or above *low* and connected to that.

    Args:
        image: the picture.
        low: least sum of the derivatives of an edge that continues another one, 0 to 2040.
        high: least sum of an edge that begins.
    """
    import numpy as np

    across, down, size = _gradient(np.asarray(image, np.int16))
    thin = _maxima(across, down, size) & (size > low)
    edges = _connected(thin & (size > high), thin)
    return Image.fromarray(edges.astype(np.uint8) * np.uint8(255)).convert("RGB")


def _gradient(pixels: NDArray[np.int16]) -> tuple[Any, Any, Any]:
    """Return the derivatives from left to right and from top to bottom, and the sum of their absolute values."""
    import numpy as np

    around = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_down = around[:-2] + 2 * around[1:-1] + around[2:]
    smooth_across = around[:, :-2] + 2 * around[:, 1:-1] + around[:, 2:]
    across = smooth_down[:, 2:] - smooth_down[:, :-2]
    down = smooth_across[2:] - smooth_across[:-2]
    size = np.abs(across) + np.abs(down)
    best = size.argmax(axis=2)[..., None]
    across, down, size = (np.take_along_axis(each, best, axis=2)[..., 0] for each in (across, down, size))
    return across, down, size


def _maxima(across: NDArray[np.int16], down: NDArray[np.int16], size: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return which pixels are larger than their two neighbours along the gradient, to the nearest eighth of a turn."""
    import numpy as np

    high, wide = size.shape
    around = np.pad(size, 1)

    def beside(rows: int, columns: int) -> Any:
        return around[1 + rows : 1 + rows + high, 1 + columns : 1 + columns + wide]

    steepness = np.abs(down), np.abs(across).astype(np.float32)
    horizontal = steepness[0] < steepness[1] * np.float32(np.tan(np.pi / 8))
    vertical = steepness[0] > steepness[1] * np.float32(np.tan(3 * np.pi / 8))
    falling = (across < 0) == (down < 0)
    # Of two equal neighbours one counts.
    return np.select(
        [horizontal, vertical, falling],
        [
            (size > beside(0, -1)) & (size >= beside(0, 1)),
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            (size > beside(-1, -1)) & (size > beside(1, 1)),
        ],
        (size > beside(-1, 1)) & (size > beside(1, -1)),
    )


def _connected(begun: NDArray[np.bool_], thin: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what of *thin* is connected with what is begun, over edges and corners of pixels."""
    import numpy as np

    high, wide = thin.shape
    # Flat, within a border of one pixel, so that the neighbours' indices need no check.
    row = wide + 2
    left = np.pad(thin, 1).ravel()
    reached = np.pad(begun, 1).ravel()
    left &= ~reached
    neighbours = np.array([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1])
    front = np.flatnonzero(reached)
    while front.size:
        near = (front[:, None] + neighbours).ravel()
        front = np.unique(near[left[near]])
        left[front] = False
        reached[front] = True
    return reached.reshape(high + 2, row)[1:-1, 1:-1]
