"""What pipelines come to before they run: the published sizes, and what is counted as the programs
themselves count it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.adapting import opened
from tests.scripts import ROOT
from tests.shipped import COMPOSED
from undegrade.image_adapt.adapters import ADAPTERS
from undegrade.image_adapt.config import adapt_schema
from undegrade.models.classification.classifier import build_classifier
from undegrade.models.dense.backbone import build_backbone
from undegrade.models.dense.landmarks import LandmarkNetwork
from undegrade.models.dense.segmentation import BiSeNet
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.trainers.autoencoder import AutoencoderConfig, autoencoder_network
from undegrade.trainers.editing import EditorConfig, editor_network
from undegrade.trainers.restoration import RestorerConfig, build_restorer
from undegrade.utils.config import build, read_yaml
from undegrade.utils.cost_table import plan
from undegrade.utils.costs import Cost, costs
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.known_sizes import NETWORKS, SIZES, WITHOUT_NETWORK
from undegrade.utils.pipeline import main
from undegrade.utils.stages import PipelineConfig, commands


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def found(pipeline: str, dataset: str, **given: str) -> dict[str, Cost]:
    """Cost by stage, without the repetition's name."""
    stages = commands(build(PipelineConfig, read_yaml(f"configs/pipelines/{pipeline}.yaml")), {"dataset": dataset, **given})
    return {stage.name.rpartition("/")[2]: cost for stage, cost in zip(stages, costs(stages), strict=True)}


# images of stages, each with its number of passes forward and backward an image
PUBLISHED = {
    ("demo", "Digits"): {"table_clean": (3_600, 2, 0), "table_degraded": (3_600, 3, 0), "evaluate": (3_600, 7, 0)},
    # ImageNet-C at severity 5 is 15 x 50,000 images, DDA 50 passes of each kind; DiffAUD trains on
    # 50,000 images x 3 degradations; SDA on 50 of each of 1,000 classes: DiT 250 passes, the VAE 1
    ("diffaud", "Imagenet"): {
        "degraded_distill": (150_000, 200, 50), "adapt_known-train": (150_000, 50, 50), "adapt_known-validation": (150_000, 50, 50),
        "adapted_distill": (150_000, 200, 50), "adapt_test": (750_000, 50, 50), "evaluate": (750_000, 4, 0),
    },
    ("sda", "Imagenet"): {
        "adapt_test": (750_000, 50, 50), "generate": (50_000, 251, 0), "align": (50_000, 50, 50),
        "finetune": (45_000, 100 / 3, 30), "adapt_clean": (50_000, 50, 50), "evaluate_sda": (800_000, 3, 0),
    },
    ("diffaud", "CIFAR10"): {
        "clean": (45_000, 2000 / 9, 200), "degraded-blur": (45_000, 1000 / 9, 100), "degraded_distill": (135_000, 1000 / 9, 50),
        "adapt_known-train": (135_000, 50, 50), "adapt_known-validation": (15_000, 50, 50), "adapt_test": (150_000, 50, 50),
        "evaluate": (150_000, 4, 0),
    },
    ("adapters", "CIFAR10"): {
        "chain-train": (405_000, 50, 50), "adapt_tests-distilled": (160_000, 1, 0), "filter_fit-clahe": (45_000, 0, 0),
        "fit_rules-clahe": (45_000, 5, 0), "evaluate_adapters-dda": (160_000, 5, 0),
    },
    ("sda", "CIFAR10"): {"generate": (1000, 250, 0), "align": (1000, 50, 50), "finetune": (900, 50 / 9, 5)},
    # 229 levels and 15 unseen corruptions x 3 severities and clean images
    ("fusiondistill", "CIFAR10"): {"evaluate": (2_750_000, 10, 0), "specialist-jpeg": (45_000, 2000 / 9, 100)},
    ("fusiondistill", "CIFAR100"): {
        "clean": (45_000, 2000 / 9, 200), "all-ResNet56_fused": (180_000, 1000 / 9, 100), "soup": (180_000, 1, 0),
        "all-ResNet56-ResNet56_fusiondistill": (180_000, 2000 / 9, 100), "evaluate": (2_750_000, 10, 0),
    },
    ("fusiondistill", "TinyImagenet"): {"clean": (90_000, 2000 / 9, 200), "evaluate": (2_750_000, 10, 0)},
    ("fusiondistill", "Digits"): {"evaluate": (98_725, 10, 0)},
    ("diffaud", "Digits"): {"adapt_known-train": (3885, 7, 0), "adapt_known-validation": (429, 7, 0), "adapt_test": (5385, 7, 0)},
    ("sda", "Digits"): {"generate": (1000, 50, 0), "align": (1000, 7, 0), "adapt_clean": (359, 7, 0), "evaluate_sda": (5744, 6, 0)},
    # passes of the U-Net; Decorruptor's cells are 15 + 10, the distilled editor learns by 5, the
    # consistency model by 3 passes forward
    ("decorruptor", "Digits"): {
        "consistency": (1295, 90 + 3 * 143 / 1295, 30),
        **dict.fromkeys(["vae", "dpm"], (1295, 30 + 6 * 143 / 1295, 30)),
        "cm": (1295, 50 + 5 * 143 / 1295, 10), "adapt_dda": (8975, 50, 50), "adapt_fast": (8975, 10, 0),
        **{f"adapt_consistency-{steps}": (8975, steps, 0) for steps in (1, 2, 4)}, "adapt_unguided": (8975, 4, 0),
        "adapt_dpm": (8975, 60, 0), **{f"adapt_cm-{steps}": (8975, steps, 0) for steps in (1, 2, 8)},
        "adapt_edits": (4 * 8975, 4, 0),
        "evaluate": (5385, 15, 0), "evaluate_bar": (3590, 15, 0),
    },
    ("decorruptor", "CIFAR10"): {
        "cm": (45_000, 250 + 25 / 9, 50), "adapt_dpm": (250_000, 60, 0), "adapt_edits": (1_000_000, 4, 0),
    },
    # the probe sees all images at 9 time steps, clean and noised; points are
    # judged with their mirror images
    ("repfusion", "Digits"): {
        "teacher": (1797, 18, 0), "probe-hint": (1797, 1, 0),
        "masks-hint": (1000, 8.8, 8), "test_masks-hint": (4000, 1, 0),
        "points-hint": (1295, 8 + 16 * 143 / 1295, 8), "test_points-hint": (5744, 2, 0),
    },
    ("repfusion", "CIFAR10"): {"teacher": (60_000, 18, 0), "probe-hint": (60_000, 1, 0), "evaluate_100": (160_000, 12, 0)},
    # 27 members, of which ten make steps; of 60 images each MEMO's augmentations
    ("tta", "Digits"): {"protocols-mixed-1": (5385, 47, 15), "sizes-1-1": (5385, 22, 6), "slow-reset-1": (900, 80, 43)},
    ("soups", "Digits"): {"soup-recalibrate": (5180, 1, 0), "soup-average": (5180, 0, 0), "evaluate": (1795, 11, 0)},
    ("soups", "CIFAR10"): {"evaluate": (50_000, 11, 0)},
    ("soups", "CIFAR100"): {"evaluate": (50_000, 11, 0)},
    ("soups", "TinyImagenet"): {"evaluate": (50_000, 11, 0)},
}  # fmt: skip


@pytest.mark.parametrize(("pipeline", "dataset"), PUBLISHED)
def test_published_sizes(pipeline: str, dataset: str) -> None:
    stages = found(pipeline, dataset)
    for name, (images, forward, backward) in PUBLISHED[pipeline, dataset].items():
        cost = stages[name]
        assert (cost.images, cost.forward, cost.backward) == (images, pytest.approx(images * forward), images * backward), name
    assert not [cost.unknown for cost in stages.values() if cost.unknown]
    assert all(cost.gflop is not None and (cost.gflop > 0) == (cost.forward > 0) for cost in stages.values())


def test_dda_takes_225_tflop_an_image_and_its_published_test_set_thousands_of_hours() -> None:
    cost = found("diffaud", "Imagenet")["adapt_test"]
    assert cost.gflop is not None and cost.gflop / cost.images == pytest.approx(225e3, rel=0.01)
    assert cost.gflop / 20 / 3.6e6 == pytest.approx(2333, rel=0.01)
    assert cost.disk == pytest.approx(750_000 * 256 * 256 * 3)


def test_what_the_command_line_changes_is_counted() -> None:
    assert found("diffaud", "Imagenet", known_limit="100")["adapt_known-train"].images == 300
    assert found("diffaud", "Imagenet", known_limit="null")["adapt_known-train"].images == 3 * 1_153_050
    assert found("diffaud", "Digits", severity="1-5")["adapt_test"].images == 5 * 5385
    config = build(PipelineConfig, read_yaml("configs/pipelines/diffaud.yaml"))
    config.overrides["train"].update({"loop.epochs": 2, "data.limit": 10})
    config.overrides["adapt"].update({"N": "5", "guidance_weight": "1"})
    config.overrides["test"].update({"limit": "7"})
    stages = commands(config, {"dataset": "Digits"})
    by_name = {stage.name: cost for stage, cost in zip(stages, costs(stages), strict=True)}
    assert by_name["seed1/clean"] == Cost(10, 40, 20, pytest.approx(80 * 0.0816), pytest.approx(28 * 0.27e6))
    assert (by_name["seed1/adapt_test"].forward, by_name["seed1/adapt_test"].backward) == (15 * 7 * 5,) * 2
    assert by_name["seed1/evaluate"].forward == 15 * 7 * 4


@pytest.mark.parametrize("path", [found.path for found in COMPOSED if found.path.startswith("configs/adapt/")])
def test_passes_are_those_that_the_adapter_counts(path: str) -> None:
    stage = {"script": "image_adapt/scripts/image_sample.py", "config": path, "args": {"corruption": "fog", "save_dir": "x"}}
    adapter = opened(build(adapt_schema(), read_yaml(path)))
    parts = {"editor": ("vae", "dpm", "cm"), "restoration": ("ffdnet", "distilled")}
    recipes = {name: f"configs/{family}/Digits/{name}.yaml" for family, names in parts.items() for name in names}
    before = {name: {"script": "train.py", "config": recipe} for name, recipe in recipes.items()}
    cost = costs(commands(build(PipelineConfig, {"stages": {**before, "a": stage}}), {}))[-1]
    if "ImageFolder" in path:
        assert cost.unknown == "path/to/images is not there: its images cannot be counted"
    else:
        assert (cost.forward / cost.images, cost.backward / cost.images) == adapter.passes


# --- sizes


@pytest.mark.parametrize(("name", "classes"), [("Digits", 10), ("DigitScenes", 11), ("DigitPoints", 5)])
def test_sizes_of_digits_are_those_of_their_parts(name: str, classes: int) -> None:
    parts = {split: open_source(name, split) for split in ("train", "validation", "test")}
    assert SIZES[name] == (*map(len, parts.values()), parts["train"].image_size, classes)


@pytest.mark.parametrize("layout", [("",), ("train", "test"), ("train", "val", "test")])
def test_images_of_a_folder_are_counted_as_they_are_cut(layout: tuple[str, ...], tmp_path: Path) -> None:
    for part in layout:
        for place in range(40):
            file = tmp_path / "photos" / part / ("cat", "dog")[place % 2] / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 20)).save(file)
    stages = found("diffaud", str(tmp_path / "photos"))
    parts = {split: open_source(str(tmp_path / "photos"), split) for split in ("train", "validation", "test")}
    assert stages["clean"].images == pytest.approx(len(parts["train"]), abs=1)
    assert stages["adapt_known-validation"].images == pytest.approx(3 * len(parts["validation"]), abs=3)
    assert stages["adapt_test"].images == pytest.approx(15 * len(parts["test"]), abs=15)


# --- networks


def gflop(network: nn.Module, *inputs: torch.Tensor) -> float:
    """Of a pass forward, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops() / 1e9


def dense_network(name: str) -> nn.Module:
    """A network for masks or points of its recipe's sizes, as it is trained."""
    arch, method = name.split(" ")
    backbone, half, small = build_backbone(arch), (0.5,) * 3, arch == "ResNet20"
    if method == "segmentation":
        width, stride = {"ResNet20": (32, 2), "resnet18": (128, 8), "resnet50": (512, 8)}[arch]
        network: nn.Module = BiSeNet(backbone, arch, "abcdefghijk" if small else "abcdefghijklmnopqrs", half, half, width, stride)
    else:
        deconvolutions, width = {"ResNet20": (2, 32), "resnet50": (3, 256), "hrnet_w18": (0, 256)}[arch]
        points = [str(number) for number in range(5 if small else 98)]
        network = LandmarkNetwork(backbone, arch, points, half, half, deconvolutions, width)
    return network.train()


def weights(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def diffusion_network(name: str, side: int) -> tuple[nn.Module, list[torch.Tensor]]:
    """A network of that name, and what it takes."""
    *kind, channels, blocks = name.split(" ")
    levels, deep = [int(level) for level in channels.split("-")], int(blocks[1:])
    image, tau = torch.empty(1, 3, side, side), torch.zeros(1)
    if kind == ["autoencoder"]:
        return autoencoder_network(AutoencoderConfig(levels, blocks_per_level=deep), side), [image]
    if kind == ["editor"]:
        unet = editor_network(EditorConfig(channels=levels, blocks_per_level=deep), side, 4)
        return unet, [torch.empty(1, 8, side, side), tau, torch.empty(1, 20, 64)]
    return build_denoiser(side, levels, blocks_per_level=deep, attention_levels=[1, 2] if deep == 2 else []).unet, [image, tau]


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if " " in name or network.side < 256])
def test_arithmetic_of_networks_is_what_torch_counts(name: str) -> None:
    expected, side = NETWORKS[name], NETWORKS[name].side
    network: nn.Module
    with torch.device("meta"):
        inputs = [torch.empty(1, 3, side, side)]
        if name.startswith(("ffdnet", "nafnet")):
            name = "ffdnet 96 x12" if name == "ffdnet_color" else name
            kind, channels, size = name.split(" ")
            shape = {"layers": int(size[1:])} if kind == "ffdnet" else {"blocks": [int(count) for count in size.split("-")]}
            network = build_restorer(RestorerConfig(kind, int(channels), **shape))
        elif " x" in name:
            network, inputs = diffusion_network(name, side)
        elif " " in name:
            network, inputs = dense_network(name), [torch.empty(2, 3, side, side)]
        elif side == 32:
            network = build_classifier(name, 10, (0.5,) * 3, (0.2,) * 3).network
        else:
            network = timm.create_model(name)
        network = network.to("meta")
        assert (gflop(network, *inputs) / len(inputs[0]), weights(network)) == pytest.approx(
            (expected.gflop, expected.weights), rel=0.02
        )


def test_filters_are_those_adapters_that_have_no_network() -> None:
    ours = {name: adapter for name, adapter in ADAPTERS.items() if adapter.__module__.startswith("undegrade.")}
    assert set(WITHOUT_NETWORK) == {name for name, adapter in ours.items() if not adapter.needs_model}


def test_a_network_that_is_not_known_and_a_folder_that_is_not_there_are_named_in_the_plan() -> None:
    config = build(PipelineConfig, read_yaml("configs/pipelines/diffaud.yaml"))
    config.overrides["train"].update({"model.arch": "resnext50"})
    text = plan(commands(config, {"dataset": "Digits"}), 20)
    assert "not counted, seed1/clean: the arithmetic of the network resnext50 is not known\n" in text
    text = plan(commands(build(PipelineConfig, read_yaml("configs/pipelines/diffaud.yaml")), {"dataset": "no/photos"}), 20)
    assert "not counted, seed1/adapt_test: no/photos is not there: its images cannot be counted\n" in text


# --- the plan


def test_a_dry_run_ends_with_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    main(["-c", "configs/pipelines/sda.yaml", "--dataset", "Imagenet", "--dry_run", "--speed", "40"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[lines.index("") + 1 :] if line}
    assert rows["stage"] == ["images", "forward", "backward", "hours", "GB"]
    assert rows["seed1/adapt_test"] == ["750,000", "37,500,000", "37,500,000", "1,167", "147.46"]
    assert rows["total"][0] == "1,795,000"
    assert "at 40 TFLOP a second" in " ".join(lines)
    assert [line for line in lines if line.startswith("not there yet: ckpt/")] == lines[-3:]


def test_a_speed_above_zero_is_needed() -> None:
    with pytest.raises(SystemExit):
        main(["-c", "configs/pipelines/sda.yaml", "--dry_run", "--speed", "0"])
