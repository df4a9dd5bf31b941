"""One interface to degradations, sequences and corruptions."""

from __future__ import annotations

import re

import pytest
import torch

from tests.perturbing import corrupt, draw, perturb
from tests.photo_like import photo_like
from undegrade.utils.data.perturbations.corruptions import ALL_CORRUPTIONS
from undegrade.utils.data.perturbations.degradation_functions import DegradationCompat
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS, NAMED_SEQUENCES
from undegrade.utils.data.perturbations.perturbation import PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation, options_without_effect
from undegrade.utils.random_fields import RandomFields

SEQUENCE = "blur+noise+jpeg"
NAMES = [*DEGRADATIONS, *NAMED_SEQUENCES, SEQUENCE]
IMAGES, KEYS = photo_like(3, 32), ["a", "b", "c"]
MANY = [str(i) for i in range(3000)]


# --- images


def test_one_severity_may_be_given_for_all_images() -> None:
    expected = corrupt(IMAGES, "contrast", 4, keys=KEYS, seed=0)
    for level in (4, 4.0, torch.tensor([4, 4, 4])):
        assert torch.equal(perturb(IMAGES, "contrast", level, keys=KEYS, seed=0), expected)


def test_constants_follow_the_image_size_unless_given() -> None:
    large = photo_like(1, 64)
    by_size, tiny, cifar = (perturb(large, "gaussian_noise", 5, keys=["a"], seed=0, constants=constants)
                            for constants in (None, "tiny", "cifar"))  # fmt: skip
    assert torch.equal(by_size, tiny)
    assert not torch.equal(by_size, cifar)


@pytest.mark.parametrize("name", ["fog", SEQUENCE, "weak_seq", "noise"])
def test_no_images_give_no_images(name: str) -> None:
    level = draw(name, [], 0)
    assert perturb(IMAGES[:0], name, level, keys=[], seed=0).shape == (0, 3, 32, 32)
    assert find_perturbation(name).unit(level).shape == (0,)


# --- levels


def test_severities_are_drawn_evenly_by_seed_name_and_key() -> None:
    severity = draw("fog", MANY, 0)
    assert (severity.shape, severity.dtype) == ((3000,), torch.float32)
    counts = [int((severity == s).sum()) for s in (1, 2, 3, 4, 5)]
    assert sum(counts) == 3000
    assert all(abs(count - 600) < 5 * 22 for count in counts)  # five standard deviations: sqrt(3000 / 5 * 4 / 5) = 22
    assert torch.equal(draw("fog", MANY[7:9], 0), severity[7:9])
    assert not torch.equal(draw("fog", MANY, 1), severity)
    assert not torch.equal(draw("snow", MANY, 0), severity)
    assert severity[5] == RandomFields(0, "level", "fog", keys=["5"]).integers([1], [5])[0, 0]


def test_shared_levels_have_the_hand_computed_numbers() -> None:
    u = RandomFields(0, "shared level", keys=["a"]).random64(1)[0, 0]
    assert u == pytest.approx(0.26182, abs=1e-5)  # times 101, 51, 26 and 5: 26.44, 13.35, 6.81 and 1.31
    hand = {"jpeg": [27], "noise": [13], "blur": [1.3], "saltpepper": [0.06], "fog": [2], "noise+jpeg": [13, 27]}
    for name, level in hand.items():
        assert draw(name, ["a"], 0, shared=True).flatten().tolist() == pytest.approx(level), name
    assert draw("weak_seq", ["a"], 0, shared=True).tolist() == [0]


@pytest.mark.parametrize("name", [*DEGRADATIONS, "fog"])
def test_shared_levels_cover_the_sweep_evenly(name: str) -> None:
    sweep = torch.tensor(find_perturbation(name).sweep if name in DEGRADATIONS else [1.0, 2.0, 3.0, 4.0, 5.0])
    counts = (draw(name, MANY, 0, shared=True)[:, None] == sweep).sum(0)
    assert counts.sum() == 3000  # nothing but sweep levels
    expected = 3000 / len(sweep)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_shared_levels_of_noise_and_blur_have_the_same_number_and_all_the_same_rank() -> None:
    level = {name: draw(name, MANY, 4, shared=True) for name in DEGRADATIONS}
    assert torch.equal((level["blur"] * 10).round(), level["noise"])
    order = level["jpeg"].argsort(stable=True)  # the finest sweep
    for name in DEGRADATIONS:
        first, second = find_perturbation(name).sweep[:2]
        assert (level[name][order].diff() >= first - second - 1e-6).all()
    alone = {name: draw(name, MANY, 4) for name in DEGRADATIONS}
    assert (alone["blur"] * 10).round().eq(alone["noise"]).float().mean() < 0.1


def test_unit_levels_of_all_families() -> None:
    assert find_perturbation("fog").unit(torch.tensor([1, 5])).tolist() == pytest.approx([0.2, 1.0])
    assert find_perturbation("fog").unit(3).dtype == torch.float32
    assert find_perturbation("jpeg").unit(51.0).item() == pytest.approx(0.5)
    assert find_perturbation("noise+jpeg").unit(torch.tensor([[25.0, 101.0]])).tolist() == pytest.approx([0.25])
    assert find_perturbation("weak_seq").unit(torch.zeros(2)).tolist() == [1, 1]


# --- mistakes


@pytest.mark.parametrize("severity", [0, 6, 2.5, float("nan")])
def test_a_severity_that_does_not_exist_is_reported(severity: float) -> None:
    message = re.escape(f"fog severity {severity:g} is out of range: allowed: 1, 2, 3, 4, 5")
    for level in (severity, torch.tensor([3.0, severity, 1.0])):
        with pytest.raises(ValueError, match=message):
            perturb(IMAGES, "fog", level, keys=KEYS, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nois", "unknown perturbation 'nois': did you mean 'noise'? allowed: gaussian_noise, "),
        ("motion_blurr", "unknown perturbation 'motion_blurr': did you mean 'motion_blur'? allowed: gaussian_noise, "),
        ("weak_sec", "unknown perturbation 'weak_sec': did you mean 'weak_seq'?"),
        ("blur+nois", "unknown stage 'nois' in sequence 'blur+nois': did you mean 'noise'? allowed: gaussian_noise, "),
        ("blur+sparkles", "unknown stage 'sparkles' in sequence 'blur+sparkles': allowed: gaussian_noise, "),
        ("fog+snow+fog", "sequence 'fog+snow+fog' has fog twice, which would draw the same random numbers"),
    ],
)
def test_an_unknown_name_is_reported_with_the_closest_of_all_families(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        find_perturbation(name)


@pytest.mark.parametrize("name", [*ALL_CORRUPTIONS, *NAMES, "clean"])
def test_a_known_name_is_found(name: str) -> None:
    assert find_perturbation(name).name == name


@pytest.mark.parametrize(
    ("keys", "given"), [(["a/0"] * 7000, "7000 keys, the first 'a/0'"), ([], "0 keys"), ("a/0", "the key 'a/0'")]
)
def test_keys_that_are_not_one_an_image_are_counted_and_not_listed(keys: list[str], given: str) -> None:
    message = f"got {len(IMAGES)} images and {given}: pass a list with one string for each image"
    with pytest.raises(ValueError, match=f"^{message}$"):
        perturb(IMAGES, "jpeg", 5, keys=keys, seed=0)


@pytest.mark.parametrize("name", [*DEGRADATIONS, *NAMED_SEQUENCES, "blur+saltpepper", "clean"])
def test_options_that_a_perturbation_does_not_read_change_nothing(name: str) -> None:
    row, images, keys = find_perturbation(name), photo_like(2, 16), ["a", "b"]
    level = (
        torch.tensor([[2.0, 0.2]] * 2) if "+" in name else {"jpeg": 30.0, "saltpepper": 0.2}.get(name, 2.0 * (name in DEGRADATIONS))
    )
    usual = row.apply(images, level, keys, 0)
    unread = options_without_effect([name], "data")
    for key, value in (("rounding", "truncate"), ("salt_value", 1), ("blur_intermediate", "uint8")):
        options = PerturbationOptions(compat=DegradationCompat(**{key: value}))  # type: ignore[arg-type]
        assert torch.equal(row.apply(images, level, keys, 0, options), usual) == (f"data.compat.{key}" in unread), key
    assert "data.constants" in unread and "data.compat.watermark_font" in unread


def test_options_are_read_by_some_perturbation_of_several() -> None:
    assert options_without_effect(["fog", "blur", "watermark", "saltpepper", "pixmix"], "data") == {}
    assert options_without_effect(["fog"], "input")["input.compat.rounding"] == "it is not for fog, leave it out"
