from __future__ import annotations

import pytest
import torch

from tests.perturbing import degrade, draw
from tests.photo_like import photo_like
from undegrade.utils.data.perturbations import degradations
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS, NAMED_SEQUENCES, REFERENCE, DegradationCompat
from undegrade.utils.data.perturbations.registry import find_perturbation

NAMES = list(DEGRADATIONS)
SEQUENCE = "blur+noise+jpeg"
MIDDLE = {"jpeg": 30.0, "noise": 20.0, "blur": 1.5, "saltpepper": 0.2}


IMAGES = photo_like(3, 32)
KEYS = ["a", "b", "c"]


# --- the right operation


@pytest.mark.parametrize(("compat", "bias"), [(None, 0.0), (DegradationCompat(rounding="truncate"), -0.5)])
def test_noise_bias_is_zero_when_rounded_and_half_a_level_when_truncated(compat: DegradationCompat | None, bias: float) -> None:
    grey = torch.full((24, 3, 128, 128), 128, dtype=torch.uint8)
    out = degrade(grey, "noise", 10.0, keys=[str(i) for i in range(24)], seed=0, compat=compat).double()
    assert abs(out.mean().item() - 128 - bias) < 0.05  # 5 standard errors: 10 / sqrt(1179648) = 0.009
    assert abs(out.std().item() - 10) < 0.05


def test_noise_at_twice_the_sigma_is_twice_the_noise() -> None:
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    one, two = (degrade(grey, "noise", s, keys=["k"], seed=0).double() - 128 for s in (10.0, 20.0))
    assert (two - 2 * one).abs().max() <= 1.5  # rounding: 0.5 + 2 * 0.5
    assert one.abs().max() > 25


def test_blur_keeps_every_constant_image_and_the_reference_does_not() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1).expand(256, 3, 8, 8).contiguous()
    keys = [str(v) for v in range(256)]
    for sigma in (0.2, 0.7, 1.3, 5.0):
        assert torch.equal(degrade(values, "blur", sigma, keys=keys, seed=0), values)
    drop = values.int() - degrade(values, "blur", 3.3, keys=keys, seed=0, compat=REFERENCE).int()
    assert drop.max() > 0


def test_blur_is_unbiased_and_its_kernel_is_cut_at_three_sigma() -> None:
    image = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    image[..., 16] = 255  # a vertical line: the result is the 1-D kernel
    out = degrade(image, "blur", 2.0, keys=["k"], seed=0)[0, 0, 16].double()
    x = torch.arange(-6, 7, dtype=torch.float64)
    kernel = torch.exp(-(x**2) / 8) / torch.exp(-(x**2) / 8).sum()
    assert torch.equal(out[10:23], (255 * kernel).round())
    assert out[:10].sum() == out[23:].sum() == 0


def test_saltpepper_frequencies() -> None:
    grey = torch.full((4, 3, 256, 256), 128, dtype=torch.uint8)
    p = 0.2
    out = degrade(grey, "saltpepper", p, keys=list("abcd"), seed=0)
    salt, pepper = (out == 255).double().mean().item(), (out == 0).double().mean().item()
    assert abs(salt - p / 2) < 0.0015  # 4 standard errors of 786,432 draws
    assert abs(pepper - p / 2 * (1 - p / 2)) < 0.0015
    assert abs((out == 128).double().mean().item() - (1 - p / 2) ** 2) < 0.0018
    assert not torch.equal(out[:, 0], out[:, 1])  # each channel value on its own


def test_saltpepper_at_a_higher_level_hits_what_the_lower_level_hits() -> None:
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    low, high = (degrade(grey, "saltpepper", p, keys=["k"], seed=0) for p in (0.05, 0.2))
    assert ((low == 128) | (high != 128)).all()


# --- what the result depends on


@pytest.mark.parametrize("name", [*NAMES, SEQUENCE, "strong_seq"])
def test_result_does_not_depend_on_batch_or_order(name: str) -> None:
    levels = draw(name, KEYS, 5)
    whole = degrade(IMAGES, name, levels, keys=KEYS, seed=3)
    order = [2, 0, 1]
    shuffled = degrade(IMAGES[order], name, levels[order], keys=[KEYS[i] for i in order], seed=3)
    assert torch.equal(shuffled, whole[order])
    for i in range(3):
        assert torch.equal(degrade(IMAGES[i : i + 1], name, levels[i : i + 1], keys=[KEYS[i]], seed=3)[0], whole[i])


@pytest.mark.parametrize("compat", [None, REFERENCE])
@pytest.mark.parametrize("name", [*NAMES, SEQUENCE])
def test_large_batches_are_degraded_piece_by_piece(
    name: str, compat: DegradationCompat | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = draw(name, KEYS, 5)
    whole = degrade(IMAGES, name, levels, keys=KEYS, seed=3, compat=compat)
    for pieces in (1, 2 * IMAGES[0].numel()):  # an image at a time, two at a time
        monkeypatch.setattr(degradations, "CHUNK", pieces)
        assert torch.equal(degrade(IMAGES, name, levels, keys=KEYS, seed=3, compat=compat), whole)


@pytest.mark.parametrize("name", [*NAMES, SEQUENCE, "weak_seq"])
def test_no_images_give_no_images(name: str) -> None:
    assert degrade(IMAGES[:0], name, draw(name, [], 0), keys=[], seed=0).shape == (0, 3, 32, 32)


def test_images_may_be_a_view_of_others() -> None:
    turned = IMAGES.transpose(2, 3)
    for name in NAMES:
        out = degrade(turned, name, MIDDLE[name], keys=KEYS, seed=0)
        assert torch.equal(out, degrade(turned.contiguous(), name, MIDDLE[name], keys=KEYS, seed=0))


@pytest.mark.parametrize("name", ["noise", "saltpepper", SEQUENCE, "weak_seq"])
def test_another_key_or_seed_gives_another_draw(name: str) -> None:
    image = IMAGES[:1]
    level = {SEQUENCE: torch.tensor([[1.0, 20.0, 80.0]])}.get(name, MIDDLE.get(name, 0))
    out = degrade(image, name, level, keys=["a"], seed=0)
    assert not torch.equal(out, degrade(image, name, level, keys=["b"], seed=0))
    assert not torch.equal(out, degrade(image, name, level, keys=["a"], seed=1))


def test_input_is_left_alone_and_output_is_new() -> None:
    before = IMAGES.clone()
    for name in NAMES:
        out = degrade(IMAGES, name, DEGRADATIONS[name].clean, keys=KEYS, seed=0)
        out.zero_()
        assert torch.equal(IMAGES, before)


# --- levels


@pytest.mark.parametrize("compat", [None, REFERENCE])
@pytest.mark.parametrize("name", NAMES)
def test_clean_level_is_the_identity(name: str, compat: DegradationCompat | None) -> None:
    assert torch.equal(degrade(IMAGES, name, DEGRADATIONS[name].clean, keys=KEYS, seed=0, compat=compat), IMAGES)


@pytest.mark.parametrize(
    ("name", "count", "first", "last", "worst"),
    [("jpeg", 101, 1, 101, 1), ("noise", 51, 0, 50, 50), ("blur", 51, 0, 5.0, 5.0), ("saltpepper", 26, 0, 0.25, 0.25)],
)
def test_sweep_levels_and_their_unit_scale(name: str, count: int, first: float, last: float, worst: float) -> None:
    levels = find_perturbation(name).sweep
    assert (len(levels), levels[0], levels[-1]) == (count, first, last)
    unit = find_perturbation(name).unit(torch.tensor(levels))
    assert unit.dtype == torch.float32
    assert find_perturbation(name).unit(worst) == 1
    assert find_perturbation(name).unit(DEGRADATIONS[name].clean) == 0
    assert unit.min() == 0
    assert unit.max() == 1


def test_unit_levels_have_their_hand_computed_values() -> None:
    assert find_perturbation("jpeg").unit(51.0).item() == pytest.approx(0.5)
    assert find_perturbation("blur").unit(1.25).item() == pytest.approx(0.25)
    sequence = find_perturbation("noise+jpeg").unit(torch.tensor([[25.0, 101.0], [50.0, 1.0]]))
    assert sequence.tolist() == pytest.approx([0.25, 1.0])
    assert find_perturbation("weak_seq").unit(torch.zeros(2)).tolist() == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_sampled_levels_cover_the_sweep_evenly(name: str) -> None:
    keys = [str(i) for i in range(3000)]
    levels = draw(name, keys, 0)
    assert levels.shape == (3000,)
    assert levels.dtype == torch.float32
    sweep = torch.tensor(find_perturbation(name).sweep)
    counts = (levels[:, None] == sweep).sum(0)
    assert counts.sum() == 3000  # nothing but sweep levels
    expected = 3000 / len(sweep)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    assert torch.equal(draw(name, keys[5:7], 0), levels[5:7])
    assert not torch.equal(draw(name, keys, 1), levels)


def test_sampled_levels_of_a_sequence_are_one_a_stage_and_fit_degrade() -> None:
    levels = draw(SEQUENCE, KEYS, 0)
    assert levels.shape == (3, 3)
    degrade(IMAGES, SEQUENCE, levels, keys=KEYS, seed=0)
    assert draw("weak_seq", KEYS, 0).tolist() == [0, 0, 0]
    assert find_perturbation("weak_seq").sweep == (0,)


# --- sequences


def test_sequence_applies_its_stages_from_left_to_right() -> None:
    out = degrade(IMAGES, "blur+jpeg", torch.tensor([[2.0, 20.0]] * 3), keys=KEYS, seed=0)
    blurred = degrade(IMAGES, "blur", 2.0, keys=KEYS, seed=0)
    assert torch.equal(out, degrade(blurred, "jpeg", 20.0, keys=KEYS, seed=0))
    assert not torch.equal(out, degrade(IMAGES, "jpeg+blur", torch.tensor([[20.0, 2.0]] * 3), keys=KEYS, seed=0))


def test_a_degradation_named_twice_draws_anew() -> None:
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    twice = degrade(grey, "noise+noise", torch.tensor([[10.0, 10.0]]), keys=["k"], seed=0).double()
    assert twice.std().item() == pytest.approx(10 * 2**0.5, rel=0.03)  # 20 if the draws were equal


@pytest.mark.parametrize(
    ("name", "sigma", "noise", "quality"),
    [("weak_seq", 0.64, 10, 80), ("medium_seq", 1.28, 20, 60), ("strong_seq", 2.56, 30, 40)],
)
def test_named_sequences_at_32_px(name: str, sigma: float, noise: float, quality: float) -> None:
    stages = NAMED_SEQUENCES[name].levels(32)
    assert list(stages.items()) == [("blur", sigma), ("noise", noise), ("jpeg", quality)]
    level = torch.tensor([[sigma, noise, quality]])
    out = degrade(IMAGES[:1], name, 0, keys=["a"], seed=0)
    plain = degrade(IMAGES[:1], SEQUENCE, level, keys=["a"], seed=0)  # another stream, the same distribution
    change, plain_change = ((o.double() - IMAGES[:1]).abs().mean().item() for o in (out, plain))
    assert change == pytest.approx(plain_change, rel=0.05)


def test_named_sequence_blurs_a_larger_image_beyond_the_sweep_range() -> None:
    image = photo_like(1, 128)
    blurred = degrade(image, "strong_seq", 0, keys=["a"], seed=0)  # sigma 10.24 px > 5
    assert blurred.shape == image.shape


# --- errors


@pytest.mark.parametrize(
    ("name", "level", "allowed"),
    [("jpeg", 0.0, "1 to 101"), ("noise", 51.0, "0 to 50"), ("blur", -0.1, "0 to 5"), ("saltpepper", 0.3, "0 to 0.25")],
)
def test_level_out_of_range_names_the_range(name: str, level: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{name} level .* out of range: allowed: {allowed}"):
        degrade(IMAGES, name, level, keys=KEYS, seed=0)


def test_level_that_is_not_a_number_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="noise level nan is out of range"):
        degrade(IMAGES, "noise", float("nan"), keys=KEYS, seed=0)


def test_fractional_jpeg_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="jpeg quality 50.5 is not a whole number"):
        degrade(IMAGES, "jpeg", 50.5, keys=KEYS, seed=0)


def test_unknown_names_name_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown perturbation 'nois'.*did you mean 'noise'"):
        degrade(IMAGES, "nois", 1.0, keys=KEYS, seed=0)
    with pytest.raises(ValueError, match="did you mean 'weak_seq'"):
        draw("weak_sec", KEYS, 0)
    with pytest.raises(ValueError, match=r"unknown stage 'blurr' in sequence 'blurr\+jpeg'.*did you mean 'blur'"):
        find_perturbation("blurr+jpeg").unit(torch.zeros(1, 2))


def test_level_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has shape \[2\]: expected \[3\]"):
        degrade(IMAGES, "noise", torch.zeros(2), keys=KEYS, seed=0)
    with pytest.raises(ValueError, match=r"has shape \[3\]: expected \[3, 2\]"):
        degrade(IMAGES, "noise+blur", torch.zeros(3), keys=KEYS, seed=0)


def test_images_and_keys_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a torch.uint8 tensor"):
        degrade(IMAGES.float(), "noise", 1.0, keys=KEYS, seed=0)
    with pytest.raises(ValueError, match="expected a torch.uint8 tensor"):
        degrade(IMAGES[0], "noise", 1.0, keys=KEYS, seed=0)
    with pytest.raises(ValueError, match="got 3 images and 1 keys, the first 'a'"):
        degrade(IMAGES, "noise", 1.0, keys=["a"], seed=0)
    with pytest.raises(ValueError, match="got 3 images and the key 'abc'"):
        degrade(IMAGES, "noise", 1.0, keys="abc", seed=0)
