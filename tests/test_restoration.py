"""Restoration in one pass: networks from files, tiles, the blind noise level, and filters without
weights.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spandrel
import torch
import torch.nn.functional as F
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
from spandrel.architectures.NAFNet.__arch.NAFNet_arch import NAFNet
from torch import Tensor, nn

from tests.adapting import SCRIPT, pngs, save_images
from tests.photo_like import photo_like
from tests.scripts import run_script
from undegrade.image_adapt.adapters import ADAPTERS, Context
from undegrade.image_adapt.classical import CLASSICAL
from undegrade.models.restoration.estimates import noise_level
from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.models.restoration.restorer import open_restorer, tiled
from undegrade.utils.data.pixels import to_signed, to_unit

CPU = Context(torch.device("cpu"))


def smooth(count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side] without fine detail."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(5)) * 160 + 40
    return F.interpolate(coarse, (side, side), mode="bicubic").round().clamp(0, 255).to(torch.uint8)


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def ffdnet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = FFDNet(8, 4)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.15)
    return saved(network, tmp_path / "ffdnet.pth")


@pytest.fixture
def nafnet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = NAFNet(img_channel=3, width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    for name, parameter in network.named_parameters():
        if name.endswith((".beta", ".gamma")):  # 0 at first: its blocks would do nothing
            nn.init.normal_(parameter)
    return saved(network, tmp_path / "nafnet.pth")


# --- the noise level


@pytest.mark.parametrize("deviation", [5, 15, 40])
def test_the_noise_level_is_estimated_from_the_image_alone(deviation: float) -> None:
    clean = to_unit(smooth(4, 64))
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * deviation / 255
    assert noise_level(noisy).mul(255).tolist() == pytest.approx([deviation] * 4, rel=0.15)
    assert noise_level(noisy[..., :63, :63]).mul(255).mean().item() == pytest.approx(deviation, rel=0.1)


def test_without_detail_there_is_no_noise() -> None:
    assert noise_level(torch.full((2, 3, 8, 8), 0.3)).tolist() == [0, 0]
    assert noise_level(torch.rand(2, 3, 1, 5)).tolist() == [0, 0]


# --- networks


def test_the_published_size_has_the_published_number_of_weights() -> None:
    network = FFDNet()
    assert sum(p.numel() for p in network.parameters()) == 852_108
    assert [*network.state_dict()][:3] == ["model.0.weight", "model.0.bias", "model.2.weight"]


@pytest.mark.parametrize("sides", [(8, 8), (7, 9), (1, 3)])
def test_ffdnet_takes_any_sides_and_a_level_for_each_image(sides: tuple[int, int], ffdnet: Path) -> None:
    restorer, x = open_restorer(ffdnet), torch.rand(2, 3, *sides)
    together = restorer(x, torch.tensor([0.1, 0.5]))
    assert together.shape == x.shape
    assert torch.allclose(together[1:], restorer(x[1:], torch.tensor([0.5])), atol=1e-5)
    assert not torch.allclose(together[1:], restorer(x[1:], torch.tensor([0.1])), atol=1e-4)
    assert torch.equal(restorer(x), restorer(x, noise_level(x)))


def test_networks_of_others_are_read_by_spandrel(nafnet: Path) -> None:
    restorer, x = open_restorer(nafnet), torch.rand(2, 3, 19, 23)
    expected = spandrel.ModelLoader().load_from_file(nafnet)
    assert restorer.name == "NAFNet" and not restorer.takes_noise
    assert torch.allclose(restorer(x), torch.cat([expected(part) for part in x.split(1)]), atol=1e-6)


class _Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strange = nn.Linear(2, 2)


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enlarges = saved(SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=4), tmp_path / "sr.pth")
    with pytest.raises(ValueError, match="sr.pth: RealESRGAN Compact is for SR, and enlarges 4 times"):
        open_restorer(enlarges)
    unknown = saved(_Other(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: spandrel .* knows no network with such weights .strange.weight, strange.bias"):
        open_restorer(unknown)
    objects = tmp_path / "objects.pth"
    objects.write_bytes(pickle.dumps({"model": Path("x")}))
    with pytest.raises(ValueError, match=r"objects\.pth"):
        open_restorer(objects)
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    with pytest.raises(ValueError, match="pip install 'undegrade.restoration.'"):
        open_restorer(unknown)


# --- tiles


@pytest.mark.parametrize(("sides", "side", "overlap"), [((40, 56), 16, 4), ((17, 16), 16, 0), ((16, 33), 16, 15), ((9, 50), 16, 4)])
def test_tiles_cover_the_image_and_change_nothing_that_is_local(sides: tuple[int, int], side: int, overlap: int) -> None:
    x, seen = torch.rand(1, 3, *sides), []

    def double(part: Tensor) -> Tensor:
        seen.append(part.shape[-2:])
        return 2 * part

    assert torch.allclose(tiled(double, x, side, overlap), 2 * x, atol=1e-6)
    assert len(seen) > 1 and all(max(size) <= side for size in seen)


def test_the_levels_of_tiles_are_that_of_the_whole_image(ffdnet: Path) -> None:
    """A tile without detail would be taken for one without noise."""
    x = to_signed(photo_like(1, 64))
    x[..., :32] = 0
    adapter, told = open_adapter("restoration", model=ffdnet, tile=32), []
    adapter.restorer.register_forward_pre_hook(lambda module, given: told.append(given[1].item()))
    adapter.adapt(x, [])
    assert len(told) == 9 and {*told} == {noise_level((x + 1) / 2).item()}


def open_adapter(name: str, model: Path | None = None, **options: Any) -> Any:
    row = ADAPTERS[name]
    return row.open(row.Options(**options), Context(CPU.device, None if model is None else str(model)))


def test_a_noise_level_is_for_networks_that_are_told_one(ffdnet: Path, nafnet: Path) -> None:
    x = to_signed(photo_like(1, 16))
    given, estimated = (open_adapter("restoration", model=ffdnet, noise=n).adapt(x, []) for n in (60.0, None))
    assert not torch.allclose(given, estimated)
    with pytest.raises(ValueError, match="NAFNet is not told a noise level"):
        open_adapter("restoration", model=nafnet, noise=5.0)
    with pytest.raises(ValueError, match="overlap 16: tiles of 16 px"):
        open_adapter("restoration", model=nafnet, tile=16)


# --- without weights


@pytest.mark.parametrize("name", CLASSICAL)
def test_filters_keep_the_shape_and_treat_each_image_by_itself(name: str) -> None:
    adapter, x = open_adapter(name), to_signed(photo_like(3, 24)[..., :20, :])
    out = adapter.adapt(x, [])
    assert out.shape == x.shape and out.abs().max() <= 1 and not torch.equal(out, x)
    assert torch.equal(adapter.adapt(x[1:2], []), out[1:2])
    grey = torch.full((1, 3, 8, 8), -0.2)
    assert (adapter.adapt(grey, []) - grey).abs().max() < 0.01 or name in ("equalize", "clahe"), "nothing to be mended"


def mended(name: str, image: np.ndarray, **options: Any) -> np.ndarray:
    return CLASSICAL[name](CLASSICAL[name].Options(**options)).process(image)


def test_filters_mend_what_they_are_for() -> None:
    clean = smooth(1, 48)[0].permute(1, 2, 0).numpy()
    random = np.random.default_rng(0)

    def error(image: np.ndarray) -> float:
        return float(np.abs(image.astype(float) - clean).mean())

    noisy = (clean + random.normal(0, 30, clean.shape)).clip(0, 255).astype(np.uint8)
    assert error(mended("non_local_means", noisy)) < 0.7 * error(noisy) and error(mended("bilateral", noisy)) < 0.8 * error(noisy)
    pepper = np.where(random.random(clean.shape) < 0.1, random.choice([0, 255], clean.shape), clean).astype(np.uint8)
    assert error(mended("median_filter", pepper)) < 0.5 * error(pepper)
    full = ((clean - clean.min()) / np.ptp(clean) * 255).astype(np.uint8)
    pale = (full * 0.3 + 150).astype(np.uint8)
    assert np.abs(mended("stretch", pale, cut=0.01).astype(int) - full).mean() < 4
    assert mended("equalize", pale).std() > 2 * pale.std() and mended("clahe", pale).std() > 1.2 * pale.std()
    cast = (clean * np.array([1.0, 0.7, 0.5])).astype(np.uint8)
    assert np.ptp(mended("grey_world", cast).reshape(-1, 3).mean(0)) < 3 < np.ptp(cast.reshape(-1, 3).mean(0))
    blocks = np.kron(random.integers(100, 115, (6, 6)), np.ones((8, 8))).astype(np.uint8)[..., None].repeat(3, 2)
    steps = [
        np.abs(np.diff(image[:, 8 * 3 - 1 : 8 * 3 + 1, 0].astype(int), axis=1)).mean()
        for image in (mended("deblocking", blocks), blocks)
    ]
    assert steps[0] < 0.6 * steps[1]


def test_options_of_filters_are_checked() -> None:
    with pytest.raises(ValueError, match="kernel 4 is no odd number"):
        CLASSICAL["median_filter"].Options(kernel=4)


# --- from the command line


@pytest.mark.parametrize("words", [("restoration", "--model_path", "ffdnet.pth"), ("clahe", "--clip", "3")], ids=" ".join)
def test_photographs_are_restored_by_the_script_of_all_adapters(
    words: tuple[str, ...], ffdnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "photos", [f"{name}.png" for name in "abcd"])
    done = run_script(SCRIPT, "--adapter", *words, "--base_samples", "photos", "--save_dir", "out")
    done.check()
    assert len(pngs(tmp_path / "out")) == 4
    settings = json.loads(next((tmp_path / "out").rglob("settings.json")).read_text())
    assert settings["adapter"] == words[0]
