"""Decorruptor's corruption model: shares, moments and ranges, and what an image's result depends
on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.perturbing import perturb
from tests.photo_like import photo_like, save_all
from undegrade.utils.config import build
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.data.cells import Cell, drawn_cell, parse_cells
from undegrade.utils.data.perturbations import pixmix
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.training import DataConfig
from undegrade.utils.random_fields import RandomFields

COUNT = 40_000
DRAWS = pixmix.draw(RandomFields(0, "test", keys=[str(i) for i in range(COUNT)]))


def _near(found: torch.Tensor, share: float) -> bool:
    """Whether a share of events is within five standard errors."""
    return abs(float(found.double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / found.numel())


# --- what is drawn


def test_a_fifth_stays_a_fifth_is_transformed_and_the_rest_is_mixed() -> None:
    assert _near(DRAWS.mixed, 0.6) and _near(DRAWS.transformed, 0.2) and not (DRAWS.mixed & DRAWS.transformed).any()
    assert all(_near(DRAWS.rounds == rounds, 1 / 4) for rounds in (1, 2, 3, 4))


def test_partners_have_the_published_shares() -> None:
    partners = DRAWS.partner[:, 1:]
    for place, share in enumerate((1 / 4, 21 / 64, 21 / 64, 3 / 32)):
        assert _near(partners == place, share)
    assert _near(DRAWS.multiply[:, 1:], 1 / 2) and not DRAWS.partner[:, 0].any()


def test_weights_have_the_moments_of_the_published_distributions() -> None:
    a, b = (part[:, 1:].flatten().numpy() for part in (DRAWS.a, DRAWS.b))
    # Beta(4, 1) has mean 4/5, Beta(1, 4) 1/5, both the variance 4 / (25 x 6)
    for values, mean, variance in ((a, 1, 2 / 75 + 0.04), (b, 0, 2 / 75 + 0.04)):
        assert values.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / len(values)))
        assert values.var() == pytest.approx(variance, rel=0.02)
    assert (a.min() > 0) & (a.max() < 2) & (np.abs(b).max() < 1) and np.array_equal(a > 1, b < 0)
    assert a[a < 1].mean() == pytest.approx(0.8, abs=0.005) and b[b > 0].mean() == pytest.approx(0.2, abs=0.005)
    assert np.corrcoef(a[b > 0], b[b > 0])[0, 1] == pytest.approx(0, abs=0.02)  # drawn apart


def test_pictures_are_of_either_set_with_equal_probability() -> None:
    assert _near(DRAWS.picture[..., 0] < 0.5, 1 / 2)
    assert DRAWS.picture[..., 1].flatten().histc(10, 0, 1) == pytest.approx(torch.full((10,), COUNT / 5), abs=500)


def _spied(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> dict[str, list[float]]:
    """The parameters with which the operators are called."""
    seen: dict[str, list[float]] = {}

    def spy(name: str) -> Callable[..., torch.Tensor]:
        def called(images: torch.Tensor, *parameters: object) -> torch.Tensor:
            values = parameters[0] if parameters else torch.zeros(len(images))
            if name == "affine":
                part = next(i for i, value in enumerate(values) if isinstance(value, torch.Tensor))
                seen.setdefault(f"affine {part}", []).extend(values[part].tolist())
            else:
                seen.setdefault(name, []).extend(torch.as_tensor(values).expand(len(images)).tolist())
            return images

        return called

    for name in names:
        monkeypatch.setattr(pixmix.operators, name, spy(name))
    return seen


OPERATORS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "affine",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)


def test_augmentations_are_as_frequent_as_each_other_and_in_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _spied(monkeypatch, OPERATORS)
    for height, width in ((256, 1), (1, 256)):
        pixmix.augment(torch.zeros(6500, 3, height, width, dtype=torch.uint8), DRAWS.augmentation[:6500, width % 2])
    assert set(seen) == set(OPERATORS) - {"affine"} | {"affine 1", "affine 3", "affine 2", "affine 5"}
    assert all(abs(len(values) - 1000) < 5 * 31 for values in seen.values())
    assert set(seen["posterize"]) == {4}
    assert set(seen["rotate"]) == {-2, -1, 0, 1, 2}
    assert set(seen["solarize"]) == set(range(231, 255))
    for name in ("affine 1", "affine 3"):  # shear
        sizes = np.abs(seen[name])
        assert 0.003 <= sizes.min() < 0.0032 and 0.0298 < sizes.max() <= 0.03 and abs(np.sign(seen[name]).mean()) < 0.16
    for name in ("affine 2", "affine 5"):  # translation; nowhere along the side of one pixel
        assert set(seen[name]) == set(range(-8, 9))
    for name in pixmix.OVERLAPPING:
        assert 0.118 <= min(seen[name]) < 0.12 and 0.278 < max(seen[name]) <= 0.28


def test_without_the_overlapping_operators_there_are_nine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _spied(monkeypatch, OPERATORS)
    pixmix.augment(torch.zeros(3000, 3, 2, 2, dtype=torch.uint8), DRAWS.augmentation[:3000, 1], all_ops=False)
    assert pixmix.OVERLAPPING == ("color", "contrast", "brightness", "sharpness") and not set(seen) & set(pixmix.OVERLAPPING)
    assert sum(map(len, seen.values())) == 3000


def test_simsiams_transform_has_its_shares_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("brightness", "contrast", "color", "shifted_hue", "greyscale", "gaussian_blur")
    seen = _spied(monkeypatch, names)
    images = torch.zeros(5000, 3, 32, 64, dtype=torch.uint8)
    pixmix.simsiam(images, DRAWS.simsiam[:5000, 2])
    shares = {name: len(seen[name]) / 5000 for name in names}
    assert shares == pytest.approx(dict(zip(names, (0.8, 0.8, 0.8, 0.8, 0.2, 0.5), strict=True)), abs=0.035)
    ranges = [(0.6, 1.4)] * 3 + [(-0.1, 0.1), (0, 0), (0.1 / 8, 6.5 / 8)]  # of the blur at 256 px: 0.1 to 6.5
    for name, (low, high) in zip(names, ranges, strict=True):
        assert low <= min(seen[name]) <= low + 0.01 and high - 0.01 <= max(seen[name]) <= high


# --- images


def test_mixing_is_the_published_sum_and_product() -> None:
    generator = torch.Generator().manual_seed(0)
    image, partner = (
        torch.rand(6, 3, 9, 7, generator=generator),
        torch.randint(0, 256, (6, 3, 9, 7), generator=generator).to(torch.uint8),
    )
    partner[:, :, 0] = 0
    multiply = torch.tensor([True, False] * 3)
    out = pixmix.mix(image, partner, DRAWS.a[:6, 1], DRAWS.b[:6, 1], multiply)
    for i in range(6):
        m, p, a, b = image[i].double().numpy(), partner[i].double().numpy() / 255, float(DRAWS.a[i, 1]), float(DRAWS.b[i, 1])
        product, total = (2 * m) ** a * np.maximum(2 * p, 1e-37) ** b / 2, (a * (2 * m - 1) + b * (2 * p - 1) + 1) / 2
        assert np.allclose(out[i], np.clip(product if multiply[i] else total, 0, 1), atol=1e-6)


def test_a_fifth_of_the_images_comes_out_as_it_went_in() -> None:
    images, keys = photo_like(10, 8).repeat(100, 1, 1, 1), [str(i) for i in range(1000)]
    out = perturb(images, "pixmix", 0, keys=keys, seed=0)
    draws = pixmix.draw(RandomFields(0, "pixmix", keys=keys))
    untouched = (out == images).flatten(1).all(1)
    assert untouched[~(draws.mixed | draws.transformed)].all()
    assert untouched[draws.transformed].float().mean() == pytest.approx(
        0.2 * 0.8 * 0.5, abs=0.06
    )  # neither jittered, grey nor blurred
    assert untouched[draws.mixed].float().mean() < 0.01


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (64, 48), (33, 31)])
def test_bytes_of_an_image_are_the_same_in_every_batch(height: int, width: int) -> None:
    images, keys = photo_like(60, 64)[:, :, :height, :width], [str(i) for i in range(60)]
    whole = perturb(images, "pixmix", 0, keys=keys, seed=3)
    assert whole.shape == images.shape and whole.dtype == torch.uint8
    assert torch.equal(perturb(images.contiguous(memory_format=torch.channels_last), "pixmix", 0, keys=keys, seed=3), whole)
    assert torch.equal(perturb(images.flip(0), "pixmix", 0, keys=keys[::-1], seed=3).flip(0), whole)
    for i in range(0, 60, 7):
        assert torch.equal(perturb(images[i : i + 1], "pixmix", 0, keys=keys[i : i + 1], seed=3)[0], whole[i])
    assert not torch.equal(perturb(images, "pixmix", 0, keys=keys, seed=4), whole)


def test_it_is_a_degradation_like_any_other() -> None:
    row = find_perturbation("pixmix")
    assert parse_cells(["pixmix"], [5]) == [Cell("pixmix", 0)] == [drawn_cell("pixmix")]
    assert row.unit(row.draw(["a", "b"], 0)).tolist() == [1, 1]
    batch = BatchSet(open_source("Digits", "train", limit=20), ["pixmix", "pixmix+jpeg"], 20, 0)[0, 0]
    assert batch["degraded"].shape == (40, 3, 32, 32) and batch["level"][:20].unique().tolist() == [1]
    assert not torch.equal(batch["degraded"][:20], batch["clean"][:20])


# --- options


def test_options_are_keys_of_the_configuration_and_part_of_what_results_are_known_by(tmp_path: Path) -> None:
    row, images, keys = find_perturbation("pixmix"), photo_like(40, 32), [str(i) for i in range(40)]
    config = build(DataConfig, {"perturbations": {"pixmix": {"all_ops": False}}}, "data")
    assert row.identity(config, 32) == {"pixmix": {"all_ops": False}} and row.identity(PerturbationOptions(), 32) == {}
    assert not torch.equal(row.apply(images, 0, keys, 0, config), row.apply(images, 0, keys, 0))

    save_all(tmp_path / "pictures", ["a.png"], torch.full((1, 3, 40, 40), 200, dtype=torch.uint8))
    options = PerturbationOptions(perturbations={"pixmix": {"fractals": str(tmp_path / "pictures")}})
    assert row.identity(options, 32)["pixmix"]["fractals"].startswith("1 pictures ")
    assert not torch.equal(row.apply(images, 0, keys, 0, options), row.apply(images, 0, keys, 0))
    missing = PerturbationOptions(perturbations={"pixmix": {"features": "missing"}})
    with pytest.raises(FileNotFoundError, match="perturbations.pixmix.features"):
        row.apply(images, 0, keys, 0, missing)
