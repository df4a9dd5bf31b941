from __future__ import annotations

import itertools

import cv2
import imagecorruptions
import imagecorruptions.corruptions
import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.perturbing import corrupt
from tests.photo_like import photo_like, to_array
from tests.published_corruptions import published
from undegrade.utils.data.perturbations import corruption_functions, corruption_weather
from undegrade.utils.data.perturbations.corruption_constants import CONSTANTS
from undegrade.utils.data.perturbations.corruptions import FUNCTIONS

DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)


class _GlobalStream:
    """The global generator that imagecorruptions draws from, behind the methods that ours are drawn
    with.
    """

    def __init__(self, seed: int) -> None:
        self.stream = np.random.RandomState(seed)  # noqa: NPY002

    def uniform(self, low: float, high: float) -> float:
        return self.stream.uniform(low, high)

    def random(self, size: int, dtype: type = np.float64) -> np.ndarray:
        return self.stream.random_sample(size).astype(dtype)

    def normal(self, mean: float, std: float, size: tuple[int, ...]) -> np.ndarray:
        return self.stream.normal(mean, std, size)


def _mine(name: str, image: torch.Tensor, severity: int, stream: _GlobalStream, constants: str) -> np.ndarray:
    result = FUNCTIONS[name](image[None], [stream], *CONSTANTS[name][constants][severity - 1])[0]
    return to_array(result.clamp(0, 255).to(torch.uint8))


# --- parity with imagecorruptions (ImageNet constants)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_corruptions_equal_imagecorruptions_within_one_level(name: str) -> None:
    image = photo_like(1, 224)
    for severity in range(1, 6):
        expected = imagecorruptions.corrupt(to_array(image[0]), severity, name)
        out = to_array(corrupt(image, name, severity, keys=["a"], seed=0, constants="imagenet")[0])
        difference = np.abs(out.astype(int) - expected)
        assert difference.max() <= 1
        # Products that land on a whole number but for the last bit are truncated either way.
        assert (difference > 0).mean() < (0.03 if name == "saturate" else 0.01), severity


@pytest.mark.parametrize(("constants", "size"), [("cifar", 32), ("tiny", 64)])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_corruptions_of_the_small_sets_equal_the_published_ones_within_one_level(
    name: str, constants: str, size: int
) -> None:
    image = photo_like(1, size)
    for severity in range(1, 6):
        expected = published(name, constants, severity)(to_array(image[0]), 0)
        out = to_array(corrupt(image, name, severity, keys=["a"], seed=0, constants=constants)[0])
        difference = np.abs(out.astype(int) - expected)
        assert difference.max() <= 1, severity
        assert (difference > 0).mean() < (0.03 if name == "saturate" else 0.01), severity


@pytest.mark.parametrize("name", ["motion_blur", "fog", "spatter"])
def test_stochastic_corruptions_equal_imagecorruptions_given_the_same_stream(name: str) -> None:
    image = photo_like(1, 96)[0]
    for severity in range(1, 6):
        np.random.seed(severity)  # noqa: NPY002  imagecorruptions draws from the global generator
        expected = imagecorruptions.corrupt(to_array(image), severity, name)
        difference = np.abs(_mine(name, image, severity, _GlobalStream(severity), "imagenet").astype(int) - expected)
        assert difference.max() <= 1
        # ImageMagick's motion blur is rounded, imagecorruptions truncates: half of the values are
        # one level apart.
        assert (difference > 0).mean() < (0.6 if name == "motion_blur" else 0.005), severity


@pytest.mark.parametrize(("name", "bound"), [("impulse_noise", 0.03), ("glass_blur", 0.03), ("snow", 0.05), ("frost", 0.1)])
def test_mean_change_equals_that_of_imagecorruptions(name: str, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    images, draws = photo_like(3, 96), 12
    if name == "frost":  # imagecorruptions draws one of six photographs, the published generators one of the first five
        randint = np.random.randint  # noqa: NPY002
        monkeypatch.setattr(np.random, "randint", lambda low, high=None: randint(min(low, 5) if high is None else low, high))
    for severity in (1, 3, 5):
        np.random.seed(0)  # noqa: NPY002
        mine, theirs = 0.0, 0.0
        for draw in range(draws):
            out = corrupt(images, name, severity, keys=[f"{i}/{draw}" for i in range(3)], seed=0, constants="imagenet")
            mine += (out.double() - images).abs().mean().item() / draws
            for image in images:
                # These two draw from generators of their own.
                own = {"seed": draw} if name in ("impulse_noise", "glass_blur") else {}
                other = imagecorruptions.corrupt(to_array(image), severity, name, **own)
                theirs += np.abs(other.astype(float) - to_array(image)).mean() / draws / len(images)
        assert mine == pytest.approx(theirs, rel=bound), severity


# --- algorithm facts of the published generators


@pytest.mark.parametrize("size", [32, 64, 224])
def test_zoom_is_the_centre_of_scipys_zoom(size: int) -> None:
    image = np.random.default_rng(0).random((size, size)).astype(np.float32)
    stack = torch.from_numpy(image).expand(1, 16, size, size).contiguous(memory_format=torch.channels_last)
    for factor in (1, 1.01, 1.06, 1.11, 1.25, 1.3, 1.75, 2.5, 4.5):
        crop = int(np.ceil(size / factor))
        first = (size - crop) // 2
        zoomed = ndimage.zoom(image[first : first + crop, first : first + crop], factor, order=1)
        trim = (len(zoomed) - size) // 2
        expected = zoomed[trim : trim + size, trim : trim + size]
        assert np.allclose(corruption_functions.zoom(stack.double(), factor), expected, atol=1e-5), factor
        # positions of up to 224 pixels in single precision: 0.005 grey levels
        assert np.allclose(corruption_functions.zoom(stack, factor), expected, atol=2e-5), factor


SMALL_ZOOMS = [(1, 1.06, 0.01), (1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.01), (1, 1.26, 0.01)]
ZOOMS = {  # what numpy.arange is given in the published generators, by severity
    "cifar": SMALL_ZOOMS,
    "tiny": SMALL_ZOOMS,
    "imagenet": [(1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.02), (1, 1.26, 0.02), (1, 1.31, 0.03)],
}


def _zooms(constants: str, severity: int, size: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(side of the crop, side that it is enlarged to) of every zoom that `zoom_blur` makes."""
    seen: list[tuple[int, int]] = []
    real = torch.nn.functional.interpolate

    def interpolate(crop: torch.Tensor, size: list[int], **options: object) -> torch.Tensor:
        assert crop.shape[-1] == crop.shape[-2] and size[0] == size[1]
        seen.append((crop.shape[-1], size[0]))
        return real(crop, size=size, **options)

    with monkeypatch.context() as context:
        context.setattr(corruption_functions.functional, "interpolate", interpolate)
        corrupt(photo_like(1, size), "zoom_blur", severity, keys=["a"], seed=0, constants=constants)
    return seen


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("constants", ZOOMS)
def test_zooms_crop_and_enlarge_as_scipy_does_with_the_published_float_factors(
    constants: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for severity, ends in enumerate(ZOOMS[constants], start=1):
        crops = [(int(np.ceil(size / factor)), factor) for factor in np.arange(*ends)]
        enlarged = [(crop, len(ndimage.zoom(np.zeros((crop, 1)), (factor, 1), order=0))) for crop, factor in crops]
        # the first factor, 1, is left to the image itself; equal ones are made once
        groups = [(zoom, len([*same])) for zoom, same in itertools.groupby(enlarged[1:])]
        assert _zooms(constants, severity, size, monkeypatch) == [zoom for zoom, _ in groups], severity
        times = [count for _, count in corruption_functions._zoom_factors(*ends[1:], size, size)]
        assert times == [count for _, count in groups], severity


def test_the_last_zoom_of_cifar_is_one_pixel_wider_than_its_decimal_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.arange(1, 1.26, 0.01)[-1] == 1.2500000000000002
    assert _zooms("cifar", 5, 32, monkeypatch)[-1] == (26, 33)  # 26 x 1.25 = 32.5, which rounds to 32


@pytest.mark.parametrize("margin", [1, 2, 4])
def test_glass_copies_neighbours_one_after_the_other(margin: int) -> None:
    height, width = 24, 17
    rng = np.random.default_rng(margin)
    images = rng.integers(0, 256, (2, 3, height, width), dtype=np.uint8)
    rows, columns = rng.integers(-margin, margin, (2, 2, height - 2 * margin, width - 2 * margin))
    expected = images.copy()
    for image in range(2):
        for i, row in enumerate(range(height - margin, margin, -1)):
            for j, column in enumerate(range(width - margin, margin, -1)):
                there = row + rows[image, i, j], column + columns[image, i, j]
                expected[image, :, row, column] = expected[image, :, there[0], there[1]]
    assert np.array_equal(corruption_functions.copy_neighbours(torch.from_numpy(images), rows, columns, margin), expected)


def test_glass_loses_pixels_as_the_published_code_does() -> None:
    # One iteration of the published loop at offset 1 leaves 1,114 of 1,600 distinct pixels; a swap
    # would keep all.
    image = torch.arange(1600).view(1, 1, 40, 40)
    offsets = np.random.default_rng(0).integers(-1, 1, (2, 1, 38, 38))
    assert len(corruption_functions.copy_neighbours(image, *offsets, 1).unique()) == pytest.approx(1114, abs=40)


@pytest.mark.parametrize("side", [32, 64])
def test_fog_height_map_equals_imagecorruptions_given_the_same_stream(side: int) -> None:
    np.random.seed(3)  # noqa: NPY002
    expected = imagecorruptions.corruptions.plasma_fractal(side, 2.5)
    uniform = _GlobalStream(3).random(side**2 - 1, np.float32) * 2 - 1
    out = corruption_weather.height_map(uniform[None], side, 2.5)
    assert np.allclose(out[0], expected, atol=1e-5)
    assert out.min() == 0
    assert out.max() == 1


def test_motion_smear_is_half_a_gaussian_along_the_angle() -> None:
    image = np.zeros((21, 41), dtype=np.uint8)
    image[10, 20] = 255
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    expected = np.rint(255 * weights / weights.sum())
    along = corruption_functions.motion_smear(image, 6, 2.0, 0.0)
    assert np.array_equal(along[10, 20:7:-1], expected)
    assert along.astype(int).sum() == expected.sum()
    diagonal = corruption_functions.motion_smear(image, 6, 2.0, -45.0)
    # Steps of cos 45 degrees: 0, .7, 1.4, 2.1, 2.8 go to pixels 0, 1, 1, 2, 3.
    assert diagonal[11, 19] == pytest.approx(expected[1] + expected[2], abs=1)
    assert diagonal[12, 18] == expected[3]


@pytest.mark.parametrize("name", ["motion_blur", "glass_blur", "zoom_blur", "elastic_transform"])
def test_blurs_keep_a_constant_image_at_32_px(name: str) -> None:
    grey = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    for severity in range(1, 6):
        out = corrupt(grey, name, severity, keys=["a", "b"], seed=0, constants="imagenet")
        assert out.min() >= (126 if name == "glass_blur" else 127)  # 127.99... is truncated, twice in glass
        assert out.max() <= 128


def test_defocus_below_radius_one_is_a_3x3_gaussian() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., 16, 16] = 255
    kernel = cv2.getGaussianKernel(3, 0.4)
    out = corrupt(image, "defocus_blur", 1, keys=["a"], seed=0)[0, 0, 15:18, 15:18].numpy()
    assert np.abs(out - 255 * kernel * kernel.T).max() <= 1
    assert corrupt(image, "defocus_blur", 1, keys=["a"], seed=0)[0, 0].count_nonzero() <= 9


def _ramp_residual(severity: int) -> float:
    """Standard deviation, in pixels, of the horizontal displacement that is left after an affine
    fit.
    """
    slope = 6
    ramp = torch.arange(32, dtype=torch.uint8).mul(slope).expand(200, 3, 32, 32).contiguous()
    out = corrupt(ramp, "elastic_transform", severity, keys=[str(i) for i in range(200)], seed=0)
    inner = out[:, 0, 8:24, 8:24].double().reshape(200, -1).numpy()
    rows, columns = np.mgrid[8:24, 8:24].reshape(2, -1)
    design = np.stack([rows, columns, np.ones_like(rows)], axis=1)
    residual = inner.T - design @ np.linalg.lstsq(design, inner.T, rcond=None)[0]
    return float(residual.std()) / slope


def test_elastic_severity_one_at_32_px_is_affine_only() -> None:
    assert _ramp_residual(1) < 0.07  # truncation of uniform remainders: 0.29 grey levels / 6


def test_elastic_displacement_has_its_computed_size() -> None:
    displacement, sigma, _ = CONSTANTS["elastic_transform"]["cifar"][4]
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    # A uniform variable in -1..1 has variance 1/3; smoothing in 2-D multiplies its deviation by the
    # sum of squares.
    expected = displacement * (1 / 3) ** 0.5 * (kernel**2).sum()
    assert _ramp_residual(5) == pytest.approx(expected, rel=0.08)  # the affine fit takes up a few per cent


def test_snow_adds_its_layer_and_the_layer_turned_round() -> None:
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    out = corrupt(black, "snow", 5, keys=["a"], seed=0)
    floor = int((1 - 0.8) * 0.5 * 255)  # the whitening of a black pixel
    assert torch.equal(out, out.flip(-1, -2))
    assert out.min() == floor
    assert out.max() > 2 * floor


def test_frost_photographs_are_five_of_their_scaled_sizes() -> None:
    sizes = [(600, 900), (315, 560), (315, 560), (350, 527), (495, 660)]
    assert len(corruption_weather.FROST_PHOTOGRAPHS) == 5
    for index, (height, width) in enumerate(sizes):
        for scale, side in ((0.2, 32), (0.3, 64), (1.0, 224)):
            photograph = corruption_weather._frost_photograph(index, scale, side, side)
            assert np.abs(np.array(photograph.shape[1:]) - (height * scale, width * scale)).max() <= 0.5
    assert min(corruption_weather._frost_photograph(1, 1.0, 400, 400).shape[1:]) > 400  # enlarged where it is too small
