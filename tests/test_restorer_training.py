"""Training of restorers: on clean targets, and on what an adapter made of the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.adapting import SCRIPT, pngs
from tests.scripts import run_script
from tests.tiny import tiny_batch
from undegrade.image_adapt.adapters import ADAPTERS, Context
from undegrade.models.restoration.restorer import open_restorer
from undegrade.trainers.restoration import Restoration, RestorerConfig, build_restorer
from undegrade.utils.config import build
from undegrade.utils.data.batches import AugmentConfig, BatchSet
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.training import DataConfig

SMALL = ("--data.limit", 8, "--data.batch_size", 4, "--loop.epochs", 1, "--model.channels", 4)


def train(root: Path, recipe: str, *words: object) -> Path:
    """The checkpoint of a tiny run."""
    layers = () if recipe == "nafnet" else ("--model.layers", 3)
    run = ("--save_dir", root, "--run_id", "one", *SMALL, *layers, *words)
    run_script("train.py", "-c", f"configs/restoration/Digits/{recipe}.yaml", *run).check()
    return root / "restoration/Digits" / recipe / "one/best.safetensors"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a filter, of training and validation images under two degradations."""
    root = tmp_path_factory.mktemp("adapted")
    for split in ("train", "validation"):
        words = ("--adapter", "clahe", "--dataset", "Digits", "--split", split, "--corruption", "noise,clean", "--limit", 8)
        run_script(SCRIPT, *words, "--seed", 5, "--save_dir", root / split).check()
    return root


def test_a_trained_restorer_is_found_by_its_name_and_adapts(tmp_path: Path) -> None:
    checkpoint = train(tmp_path, "ffdnet", "--data.degradations", "[noise, blur+noise]")
    assert (checkpoint.parent / "samples.png").is_file()
    restorer = open_restorer(checkpoint)
    assert restorer.name == "FFDNet" and restorer.takes_noise
    words = ("-c", "configs/adapt/Digits/restoration.yaml", "--runs", tmp_path, "--corruption", "fog", "--limit", 3)
    done = run_script(SCRIPT, *words, "--save_dir", tmp_path / "out")
    done.check()
    assert len(pngs(tmp_path / "out/fog/5")) == 3 and "FFDNet from" in done.err
    again = train(tmp_path / "more", "ffdnet", "--model.init_from", checkpoint, "--loop.epochs", 0)
    assert all(torch.equal(a, b) for a, b in zip(restorer.parameters(), open_restorer(again).parameters(), strict=True))


def test_nafnet_is_trained_and_read_again(tmp_path: Path) -> None:
    checkpoint = train(tmp_path, "nafnet", "--model.blocks", "[1]", "--data.degradations", "[noise]")
    restorer = open_restorer(checkpoint)
    assert restorer.name == "NAFNet" and not restorer.takes_noise
    x = torch.rand(2, 3, 13, 9)
    assert restorer(x).shape == x.shape
    assert list(ADAPTERS) and ADAPTERS["restoration"].open(
        ADAPTERS["restoration"].Options(), Context(torch.device("cpu"), str(checkpoint))
    ).parameters == sum(p.numel() for p in restorer.parameters())


def test_an_adapter_is_distilled_from_the_images_that_it_saw(adapted: Path, tmp_path: Path) -> None:
    words = ("--data.adapted", f"{adapted}/{{split}}", "--data.degradations", "[noise, clean]", "--method.target", "adapted")
    assert train(tmp_path, "distilled", *words).is_file()


@pytest.mark.parametrize("pairing", ["paired", "independent"])
def test_pairs_are_the_degraded_image_and_what_was_made_of_it(adapted: Path, pairing: str) -> None:
    source = open_source("Digits", "train", limit=8)
    data = build(
        DataConfig,
        {
            "dataset": "Digits", "limit": 8, "degradations": ["noise", "clean"], "adapted_view": "adapted", "batch_size": 8,
            "pairing": pairing, "augment": {"flip": True, "crop_padding": 1, "cutout": 0},
        },
    )  # fmt: skip
    clahe = ADAPTERS["clahe"].open(ADAPTERS["clahe"].Options(), Context(torch.device("cpu")))
    still = data.batches(source, 1, False, adapted / "train")[0, 0]
    moved = data.batches(source, 1, True, adapted / "train")[0, 0]
    for batch in (still, moved):
        assert batch["adapted"].shape == batch["degraded"].shape == (16, 3, 32, 32)
        assert not torch.equal(batch["degraded"][:8], batch["clean"][:8]), "noise"
        assert torch.equal(batch["degraded"][8:], batch["clean"][8:]), "clean"
    made = clahe.adapt(still["degraded"] * 2 - 1, [torch.Generator()] * 16) / 2 + 0.5
    assert (made - still["adapted"]).abs().max() < 1 / 255, "of the same images, byte for byte but for rounding"
    inside = (slice(None), slice(None), slice(8, 24), slice(8, 24))  # filters look further than a crop's border
    places = {key: i for i, key in enumerate(still["key"][:8])}
    for i, key in enumerate(moved["key"]):
        row = places[key] + 8 * (i >= 8)
        pair = torch.stack([still["degraded"][row], still["adapted"][row]])
        steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        shifts = [torch.roll(image, by, (-2, -1)) for image in (pair, pair.flip(-1)) for by in steps]
        now = torch.stack([moved["degraded"][i], moved["adapted"][i]])
        assert any(torch.equal(now[inside], shifted[inside]) for shifted in shifts), "both moved alike"


def test_pairs_need_to_be_known(adapted: Path, tmp_path: Path) -> None:
    folder = ("--data.adapted", f"{adapted}/{{split}}", "--data.degradations", "[noise]")
    cases = [
        (("--data.adapted", tmp_path / "none", "--data.degradations", "[noise]"), "no images for noise/random under"),
        ((*folder, "--data.adapted_view", "degraded"), "method.target adapted needs adapted images beside the degraded ones"),
        ((*folder, "--data.compat.rounding", "truncate"), "was adapted from images that were corrupted otherwise"),
        (("--method.target", "clean", "--data.degradations", "[]"), "name what the restorer shall undo"),
        ((*folder, "--model.blocks", "[2]"), "--model.blocks has no effect here: it is of the other network"),
    ]
    for words, message in cases:
        done = run_script("train.py", "-c", "configs/restoration/Digits/distilled.yaml", "--save_dir", tmp_path, *SMALL, *words)
        assert done.status == 2 and message in done.err, (words, done.err)
    (adapted / "train/noise/random/settings.json").rename(tmp_path / "settings.json")
    try:
        done = run_script("train.py", "-c", "configs/restoration/Digits/distilled.yaml", "--save_dir", tmp_path, *SMALL, *folder)
        assert done.status == 2 and "does not say which degraded images its images were made of" in done.err
    finally:
        (tmp_path / "settings.json").rename(adapted / "train/noise/random/settings.json")


def test_a_start_of_other_widths_is_refused(tmp_path: Path) -> None:
    checkpoint = train(tmp_path, "ffdnet", "--loop.epochs", 0)
    words = ("--model.init_from", checkpoint, "--model.channels", 5, "--save_dir", tmp_path)
    done = run_script("train.py", "-c", "configs/restoration/Digits/ffdnet.yaml", *words)
    assert done.status == 2 and "is another network than FFDNet of these widths" in done.err


def test_the_loss_is_charbonniers_and_psnr_is_in_decibels() -> None:
    torch.manual_seed(0)
    method, batch = Restoration(build_restorer(RestorerConfig(channels=4, layers=2)), "clean", torch.zeros(0)), tiny_batch()
    out = method(batch)
    difference = (method.student(batch["degraded"]) - batch["clean"]).detach().numpy().astype(np.float64)
    assert float(out["loss"]) == pytest.approx(np.sqrt(difference**2 + 1e-6).mean(), rel=1e-5)
    expected = -10 * np.log10((difference**2).reshape(len(difference), -1).mean(1))
    np.testing.assert_allclose(out["psnr"].numpy(), expected, rtol=1e-4)
    losses = []
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = method(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_native_images_have_no_pairs() -> None:
    source = open_source("Digits", "train", limit=4)
    with pytest.raises(ValueError, match="adapted images are made already"):
        BatchSet(source, ["noise"], 2, 0, AugmentConfig(), degrade_at="native", beside={"noise": source})
