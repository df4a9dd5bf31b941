"""ImageNet-C-bar: ten further corruptions, chosen to be far from the 15 (Mintun, Kirillov and Xie,
NeurIPS 2021, arXiv:2102.11273).

Given as levels in 0..10 of the public generator, five for each image size. "imagenet" is
ImageNet-C-bar; the released files are also saved as JPEG of quality 85, which is not done here.
"cifar" is CIFAR-10-C-bar for the five corruptions that both benchmarks share. For the others the
paper gives the range at 32 px in ten steps and no choice among them: here they are those at the
places at which ImageNet-C-bar's stand in its own ten steps.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from undegrade.utils.data.perturbations import c_bar_functions as functions
from undegrade.utils.data.perturbations.corruptions import Corruption
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS

Levels = tuple[float, float, float, float, float]

_ROWS: tuple[tuple[Callable[..., Tensor], Levels, Levels], ...] = (  # function, "cifar", "imagenet"
    (functions.blue_noise_sample, (0.7, 1.4, 2.1, 3.5, 4.2), (0.8, 1.6, 2.4, 4.0, 5.6)),
    (functions.brownish_noise, (2.5, 4.0, 5.5, 6.5, 7.0), (1.0, 2.0, 3.0, 4.0, 5.0)),
    (functions.caustic_refraction, (1.4, 1.8, 2.6, 3.4, 4.6), (2.35, 3.2, 4.9, 6.6, 9.15)),
    (functions.checkerboard_cutout, (1.0, 2.0, 3.0, 4.0, 5.0), (2.0, 3.0, 4.0, 5.0, 6.0)),
    (functions.cocentric_sine_waves, (1.5, 2.5, 4.0, 4.5, 5.0), (3.0, 5.0, 8.0, 9.0, 10.0)),
    (functions.inverse_sparkles, (1.0, 1.5, 2.5, 4.5, 5.0), (1.0, 2.0, 4.0, 9.0, 10.0)),
    (functions.perlin_noise, (4.6, 5.2, 5.8, 7.6, 8.8), (4.6, 5.2, 5.8, 7.6, 8.8)),
    (functions.plasma_noise, (2.1, 4.2, 5.6, 6.3, 7.0), (4.75, 7.0, 8.5, 9.25, 10.0)),
    (functions.single_frequency_greyscale, (0.6, 0.9, 1.2, 2.7, 3.0), (1.0, 1.5, 2.0, 4.5, 5.0)),
    (functions.sparkles, (0.7, 3.5, 5.6, 6.3, 7.0), (1.0, 2.0, 3.0, 5.0, 6.0)),
)

IMAGENET_C_BAR: dict[str, Corruption] = {
    function.__name__: Corruption(
        name=function.__name__,
        function=function,
        constants={"cifar": tuple((level,) for level in cifar), "imagenet": tuple((level,) for level in imagenet)},
    )
    for function, cifar, imagenet in _ROWS
}
"""The benchmark, in alphabetical order. It has no mCE: nobody published errors to divide by."""

for _name, _row in IMAGENET_C_BAR.items():
    PERTURBATIONS.add(_name, _row)
