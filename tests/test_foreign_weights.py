"""Weights as other programs keep them: raw beside averaged ones, wrapped, or with other
shortcuts.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undegrade.models.classification.classifier import build_classifier
from undegrade.models.classification.loading import load_classifier
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.models.diffusion.loading import diffusers_folder
from undegrade.utils.checkpoint import file_digest, load_checkpoint
from undegrade.utils.runs import resolve_checkpoint

RAW, AVERAGED = {"w": torch.zeros(2)}, {"w": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": RAW, "state_dict_ema": AVERAGED},
        {"model": RAW, "model_ema": AVERAGED},
        {"model": RAW, "ema": AVERAGED},
        {"ema": AVERAGED},
        {"net": AVERAGED},
        {"state_dict": AVERAGED, "epoch": 3},
        {"model": {"state_dict": AVERAGED}},
    ],
    ids="+".join,
)
def test_averaged_weights_are_taken_and_said(content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    with caplog.at_level(logging.INFO):
        state, _ = load_checkpoint(path)
    assert torch.equal(state["w"], AVERAGED["w"])
    assert ("raw and averaged" in caplog.text) == (len(content) == 2 and "epoch" not in content)


def test_an_entry_of_a_file_is_taken_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"model": RAW, "ema": AVERAGED}, path)
    chosen = resolve_checkpoint(f"{path}#model")
    assert torch.equal(load_checkpoint(chosen)[0]["w"], RAW["w"])
    assert file_digest(chosen) != file_digest(path)
    with pytest.raises(ValueError, match="unknown entry 'modle'.*'model'"):
        load_checkpoint(f"{path}#modle")


def test_averaged_weights_of_a_pipeline_are_taken_and_the_raw_ones_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("unet", "unet_ema"):
        build_denoiser(8, [8]).unet.save_pretrained(tmp_path / part)  # type: ignore[operator]
    with caplog.at_level(logging.INFO):
        assert diffusers_folder(tmp_path) == tmp_path / "unet_ema"
    assert str(tmp_path / "unet_ema") in caplog.text
    assert diffusers_folder(tmp_path / "unet") == tmp_path / "unet"


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "model.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    network = build_classifier("ResNet20", 3, (0.5,) * 3, (0.25,) * 3).network
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}}, tmp_path / "a.ckpt")
    loaded = load_classifier(tmp_path / "a.ckpt", classes=["a", "b", "c"], arch="ResNet20", mean=[0.5] * 3, std=[0.25] * 3)
    assert all(torch.equal(loaded.network.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


class OptionA(nn.Module):
    """A public CIFAR-10 ResNet20 with shortcuts that have no weights."""

    class Block(nn.Module):
        def __init__(self, narrow: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(narrow, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.added, self.stride = (width - narrow) // 2, stride

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(out + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added)))

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, (narrow, width) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
            blocks = [self.Block(narrow if i == 0 else width, width, 2 if i == 0 and stage > 1 else 1) for i in range(3)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.get_submodule("layer3")(self.get_submodule("layer2")(self.get_submodule("layer1")(x)))
        return self.linear(x.mean((2, 3)))


def test_public_resnets_with_shortcuts_without_weights_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = OptionA().train()
    for _ in range(3):  # statistics that are not 0 and 1
        theirs(torch.randn(16, 3, 32, 32))
    theirs.eval()
    torch.save({"state_dict": {f"module.{n}": t for n, t in theirs.state_dict().items()}, "best_prec1": 91.7}, tmp_path / "a.th")
    ours = load_classifier(tmp_path / "a.th", classes=[str(i) for i in range(10)], arch="ResNet20")
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(ours.normalise(images)), atol=1e-5)
