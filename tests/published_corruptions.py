"""The published corruption algorithms, with the constants of all three sets.

imagecorruptions has the ImageNet constants only: its functions are compiled again with those of the
other sets. Frost and elastic are other algorithms there (photographs of another size, no affine),
so these two are written out as published.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecorruptions
import imagecorruptions.corruptions
import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import gaussian

from undegrade.utils.data.perturbations.corruption_constants import CONSTANTS

Reference = Callable[[np.ndarray, int], np.ndarray]  # image [H, W, 3] and the number of the draw


def published(name: str, constants: str, severity: int) -> Reference:
    """The algorithm behind the data set of `constants`; its numbers come from numpy's global
    generator.
    """
    row = CONSTANTS[name][constants][severity - 1]
    written = {"frost": frost, "elastic_transform": elastic}
    return written[name](*row) if name in written else _with_constants(name, row)


def _with_constants(name: str, row: tuple[float, ...]) -> Reference:
    """The function of imagecorruptions with `row` in place of its own constants."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(imagecorruptions.corruptions, name))))
    written = f"np.arange(1, {row[0]}, {row[1]})" if name == "zoom_blur" else repr(row if len(row) > 1 else row[0])
    constants = ast.parse(written, mode="eval").body
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "c":
            node.value = constants
    space = vars(imagecorruptions.corruptions) | {"clipped_zoom": _clipped_zoom}
    exec(compile(ast.fix_missing_locations(tree), name, "exec"), space)

    def reference(image: np.ndarray, number: int) -> np.ndarray:
        # these two draw from generators of their own
        own = {"seed": number} if name in ("impulse_noise", "glass_blur") else {}
        return np.uint8(space[name](Image.fromarray(image), **own))

    return reference


def _clipped_zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of it, as published; imagecorruptions keeps the upper left."""
    zoomed = imagecorruptions.corruptions.clipped_zoom(image, factor)
    top, left = ((zoomed.shape[axis] - image.shape[axis]) // 2 for axis in (0, 1))
    return zoomed[top : top + image.shape[0], left : left + image.shape[1]]


def frost(image_weight: float, frost_weight: float, scale: float) -> Reference:
    folder = Path(imagecorruptions.__file__).parent / "frost"
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    photographs = [cv2.resize(cv2.imread(str(folder / name)), (0, 0), fx=scale, fy=scale) for name in names]

    def reference(image: np.ndarray, number: int) -> np.ndarray:
        height, width = image.shape[:2]
        photograph = photographs[np.random.randint(5)]  # noqa: NPY002
        top, left = (np.random.randint(photograph.shape[axis] - image.shape[axis]) for axis in (0, 1))  # noqa: NPY002
        crop = photograph[top : top + height, left : left + width, ::-1]
        return np.clip(image_weight * image + frost_weight * crop, 0, 255).astype(np.uint8)

    return reference


def elastic(displacement: float, sigma: float, shift: float) -> Reference:
    def reference(image: np.ndarray, number: int) -> np.ndarray:
        height, width = image.shape[:2]
        middle, third = np.float32([height, width]) // 2, min(height, width) // 3
        corners = np.float32([middle + third, [middle[0] + third, middle[1] - third], middle - third])
        moved = corners + np.random.uniform(-shift, shift, size=(3, 2)).astype(np.float32)  # noqa: NPY002
        affine = cv2.getAffineTransform(corners, moved)
        warped = cv2.warpAffine(image / np.float32(255), affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        moves = [np.random.uniform(-1, 1, size=(height, width)) for _ in range(2)]  # noqa: NPY002
        if displacement:
            moves = [gaussian(move, sigma, mode="reflect", truncate=3) for move in moves]
        rows, columns = np.mgrid[:height, :width]
        place = [rows + displacement * moves[0], columns + displacement * moves[1]]
        layers = [ndimage.map_coordinates(warped[..., channel], place, order=1, mode="reflect") for channel in range(3)]
        return (np.clip(np.stack(layers, axis=-1), 0, 1) * 255).astype(np.uint8)

    return reference
