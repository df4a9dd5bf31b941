"""Every perturbation on images of any size from 1 x 1 to 300 x 200, of any content, with any
key.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.fonts import make_font
from undegrade.utils.data.perturbations.corruption_constants import CONSTANT_SETS
from undegrade.utils.data.perturbations.corruptions import Corruption
from undegrade.utils.data.perturbations.degradations import DegradationCompat
from undegrade.utils.data.perturbations.perturbation import Perturbation, PerturbationOptions
from undegrade.utils.data.perturbations.registry import PERTURBATIONS, find_perturbation
from undegrade.utils.data.perturbations.watermark import TEXT

NAMES = [*PERTURBATIONS, "blur+noise+jpeg+saltpepper"]


@dataclasses.dataclass
class Case:
    """Two images of a size, with keys and a place in the perturbation's sweep."""

    height: int
    width: int
    content: str = "random"
    keys: tuple[str, str] = ("a", "b")
    place: float = 0.0
    constants: str | None = None

    def images(self) -> Tensor:
        shape = (2, 3, self.height, self.width)
        if self.content == "random":
            return torch.from_numpy(np.random.default_rng(self.height * self.width).integers(0, 256, shape, dtype=np.uint8))
        return torch.full(shape, {"black": 0, "grey": 127, "white": 255}[self.content], dtype=torch.uint8)

    def level(self, row: Perturbation) -> Tensor:
        """Of each image, or of each and each stage."""
        sweeps = torch.tensor([[stage.sweep[int(self.place * len(stage.sweep))] for stage in row.stages]] * 2)
        return sweeps if len(row.stages) > 1 else sweeps[:, 0]


keys = st.text(st.characters(), max_size=12)  # also what stands for the bytes of a name that is no UTF-8
cases = st.builds(
    Case,
    height=st.integers(1, 300),
    width=st.integers(1, 200),
    content=st.sampled_from(["random", "black", "grey", "white"]),
    keys=st.tuples(keys, keys),
    place=st.floats(0, 1, exclude_max=True),
    constants=st.sampled_from([None, *CONSTANT_SETS]),
)


@pytest.fixture(scope="module")
def font(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_font(tmp_path_factory.mktemp("fonts") / "rectangles.ttf", *TEXT[:2])


@pytest.mark.parametrize("name", NAMES)
@given(case=cases)
@example(case=Case(1, 1))
@example(case=Case(1, 40, place=0.99))
@example(case=Case(3, 2, keys=("\udce9.png", "")))
@example(case=Case(6, 6, "black", constants="imagenet"))
@example(case=Case(300, 200, place=0.5))
def test_the_result_is_an_image_of_the_same_size_whatever_the_size_content_and_key(name: str, font: str, case: Case) -> None:
    row, images = find_perturbation(name), case.images()
    options = PerturbationOptions(
        constants=case.constants if case.constants in getattr(row, "constants", CONSTANT_SETS) else None,  # type: ignore[arg-type]
        compat=DegradationCompat(watermark_font=font),
    )
    level, before = case.level(row), images.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = row.apply(images, level, case.keys, 3, options)
    assert (result.dtype, result.shape) == (torch.uint8, images.shape) and torch.equal(images, before)
    assert torch.equal(row.apply(images[1:], level[1:], case.keys[1:], 3, options), result[1:])  # without its batch mate
    if isinstance(row, Corruption) and images[0].numel() < 1000:
        severity, of_set = int(level[0]), row._set(options, min(images.shape[-2:]))
        grey = row.function(images, map(np.random.default_rng, range(2)), *row.constants[of_set][severity - 1])
        assert torch.isfinite(grey.float()).all()


@pytest.mark.parametrize("name", [name for name, row in PERTURBATIONS.items() if len(row.sweep) > 1 and not row.by_severity])
@given(case=cases)
def test_the_clean_level_leaves_every_image_as_it_is(name: str, case: Case) -> None:
    row, images = find_perturbation(name), case.images()
    assert torch.equal(row.apply(images, row.clean, case.keys, 3), images)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_an_image_of_less_than_four_pixels_becomes_one_pixel(side: int) -> None:
    image = torch.arange(3 * side * side, dtype=torch.uint8).view(1, 3, side, side) * 9
    result = find_perturbation("pixelate").apply(image, 5, ["a"], 0, PerturbationOptions(constants="imagenet"))
    assert (result - image.float().mean((2, 3), keepdim=True)).abs().max() <= 1  # rounded along each axis
