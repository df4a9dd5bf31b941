"""Photographs as the network wants them: size, shorter side and interpolation of timm's weights and
of our checkpoints, said at run time, changed by keys.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from tests.checkpoints import save_random
from tests.scripts import run_script
from tests.test_folders import write_images
from undegrade.models.classification.classifier import build_classifier
from undegrade.models.classification.inputs import Inputs, checkpoint_inputs, timm_inputs
from undegrade.trainers.classification import ClassifierConfig
from undegrade.trainers.entry import _fitted
from undegrade.utils.data.sources.images import Resize, read_image
from undegrade.utils.data.training import DataConfig

ARCH = "test_efficientnet"  # 160 px of 168, bicubic


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Weights of timm's network for two classes."""
    torch.save(build_classifier(ARCH, 2, (0.5,) * 3, (0.25,) * 3).network.state_dict(), tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A test part of two classes called 0 and 1."""
    for part in ("train", "test"):
        write_images(tmp_path / "photos" / part, ["0", "1"], 1, size=(200, 190))
    return tmp_path / "photos"


@pytest.mark.parametrize("arch", [ARCH, "resnet50.tv_in1k", "resnet18d.ra2_in1k", "convnext_tiny.fb_in1k"])
def test_pixels_are_those_of_timms_own_transform(tmp_path: Path, arch: str) -> None:
    wanted = timm_inputs(arch)
    assert wanted is not None and wanted.resize is not None and wanted.interpolation is not None
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(arch).to_dict())
    transform = create_transform(**config).transforms[:2]  # behind them: numbers from bytes, normalisation
    for size in ((500, 332), (383, 256), (333, 500)):
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        photo.save(tmp_path / "a.png")
        expected = transform[1](transform[0](photo))
        ours = read_image(tmp_path / "a.png", wanted.image_size, Resize(wanted.resize, wanted.interpolation))
        assert np.array_equal(ours.transpose(1, 2, 0), np.asarray(expected))


def test_networks_that_are_not_timms_want_nothing(tmp_path: Path, theirs: Path) -> None:
    assert timm_inputs("ResNet20") is None and timm_inputs("no_network_of_timm") is None
    assert checkpoint_inputs(theirs, ARCH) == Inputs(160, 168, "bicubic") and checkpoint_inputs(theirs, None) is None
    ours = [save_random(tmp_path / f"{i}.safetensors", **facts) for i, facts in enumerate(
        ({}, {"image_size": 24, "resize": None}, {"image_size": 24, "resize": 32}))]  # fmt: skip
    assert [checkpoint_inputs(path, ARCH) for path in ours] == [None, Inputs(24, None, None), Inputs(24, 32, "bilinear")]


def test_images_that_timm_squashes_are_said_to_be_cut(caplog: pytest.LogCaptureFixture) -> None:
    assert timm_inputs("swinv2_base_window8_256.ms_in1k") == Inputs(256, 284, "bicubic") and not caplog.text
    squashed = next(name for name in timm.list_pretrained() if timm.get_pretrained_cfg(name).crop_mode == "squash")
    assert timm_inputs(squashed) is not None and f"timm brings whole images for {squashed} to a square" in caplog.text


@pytest.mark.parametrize(
    ("words", "frame"),
    [
        ((), "160 of 168, bicubic (pixels"),
        (("--data.image_size", 160), "160 of 168, bicubic (pixels"),  # its own value is the same
        (("--data.resize", 200), "160 of 200, bicubic (pixels"),
        (("--data.interpolation", "bilinear"), "160 of 168, bilinear (pixels"),
        (("--data.image_size", 64), "64 (pixels: the centre of a shorter side); model wants 160 of 168, bicubic"),
        (("--view", "{photos}/views"), "190 (pixels: the centre of a shorter side); model wants 160 of 168, bicubic"),
    ],
)
def test_an_evaluation_takes_what_the_network_wants_and_says_so(
    theirs: Path, photos: Path, tmp_path: Path, words: tuple[object, ...], frame: str
) -> None:
    write_images(photos / "views/fog/5", ["0", "1"], 1, size=(190, 190))
    given = [str(word).format(photos=photos) for word in words]
    corruption = ("--corruption", "fog", "--severity", 5) if "--view" in given else ()
    done = run_script(
        "test.py", "-r", theirs, "--arch", ARCH, "--dataset", photos, *corruption, *given, "--out", tmp_path / "out"
    ).check()
    assert f"images of photos/test: {frame}" in done.err
    assert json.loads((tmp_path / "out/results.json").read_text())["meta"]["frame"] == frame.split(" (")[0]


def test_training_starts_with_what_the_weights_want(theirs: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data, start = DataConfig(dataset=str(photos)), ClassifierConfig(arch=ARCH, init_from=str(theirs))
    fitted = _fitted(data, start)
    assert (fitted.image_size, fitted.resize, fitted.interpolation) == (160, 168, "bicubic")
    assert (
        f"images: as {theirs} wants them, 160 of 168, bicubic (pixels: the centre of a shorter side); data.image_size"
        in caplog.text
    )
    assert _fitted(data, ClassifierConfig(arch=ARCH, pretrained=True)) == fitted == _fitted(fitted, start)  # a resumed run
    assert _fitted(data, ClassifierConfig(arch=ARCH)) == data
    digits = DataConfig(dataset="Digits")
    assert _fitted(digits, start) == digits
