"""The pipelines that are shipped: which data sets they are for, and what they find missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scripts import ROOT
from undegrade.evaluation.published import PublishedConfig, published_rows
from undegrade.utils.config import build, read_yaml
from undegrade.utils.data.sources.registry import DATASETS, DENSE, TEST_ONLY
from undegrade.utils.pipeline import check_files, main
from undegrade.utils.stages import PipelineConfig, commands


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ("--dataset", "Imagenet", "--generator", "conditional", "--diffusion", "conditional"),
            ["configs/diffusion/Imagenet/conditional.yaml does not exist; ", "diffusion has CIFAR10/conditional, ",
             "configs/generate/Imagenet/conditional.yaml does not exist; ", "Imagenet/dit"],
        ),
        (("--ddpm", "ddpm_smal", "--dataset", "docs/figures"), ["did you mean configs/diffusion/ImageFolder/ddpm_small.yaml?"]),
        (("--arch", "ResNet18", "--dataset", "CIFAR10"), ["did you mean configs/sda/CIFAR10/ResNet20.yaml?"]),
    ],
)  # fmt: skip
def test_a_missing_configuration_is_reported_with_what_there_is(
    words: tuple[str, ...], messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError) as raised:
        main(["-c", "configs/pipelines/sda.yaml", *words, "--dry_run"])
    for message in messages:
        assert message in str(raised.value)


def test_published_weights_that_are_not_there_are_reported_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-c", "configs/pipelines/sda.yaml", "--dataset", "Imagenet"]
    with pytest.raises(FileNotFoundError) as raised:
        main(words)
    for file in (
        "256x256_diffusion_uncond (see configs/adapt/Imagenet/dda.yaml)",
        "DiT-XL-2-256x256.pt (see",
        "sd-vae-ft-ema (see",
    ):
        assert f"ckpt/{file}" in str(raised.value)
    assert str(raised.value).endswith("; download with: undegrade download 256x256_diffusion_uncond DiT-XL-2-256x256 sd-vae-ft-ema")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"are not there: ckpt/DiT-XL-2-256x256\.pt \([^,]*\); download with: .*DiT-\S+$"):
        main([*words, "--adapt.model_path", "mine", "--generate.vae", "mine"])


UNFIT = {
    "diffaud": ("CIFAR100", "TinyImagenet"),
    "demo": ("CIFAR100", "TinyImagenet"),
    "sda": ("CIFAR100", "TinyImagenet"),
    "decorruptor": ("CIFAR100", "TinyImagenet", "Imagenet"),
    "repfusion": ("CIFAR100", "TinyImagenet", "Imagenet"),
    "repfusion_start": ("CIFAR100", "TinyImagenet", "Imagenet"),
    "adapters": ("CIFAR100", "TinyImagenet", "Imagenet"),
    "fusiondistill": ("Imagenet",),
    "soups": ("Imagenet",),
}


@pytest.mark.parametrize("dataset", [*DATASETS, "some/photos"])
@pytest.mark.parametrize("pipeline", UNFIT)
def test_a_pipeline_has_every_configuration_of_a_data_set_or_says_why_it_is_not_for_it(
    pipeline: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = build(PipelineConfig, read_yaml(f"configs/pipelines/{pipeline}.yaml"))
    stages = commands(config, {"dataset": dataset})
    if dataset not in (*UNFIT[pipeline], *DENSE, *TEST_ONLY):
        check_files(config, stages, dataset)
        return
    known = dict.fromkeys(DENSE, "its images have masks or points, not classes") | dict.fromkeys(TEST_ONLY, "it has images to test")
    why = (known | config.unfit)[dataset]
    with pytest.raises(FileNotFoundError, match=re.escape(f"nothing was run, the pipeline is not for {dataset}: {why}")):
        check_files(config, stages, dataset)


@pytest.mark.parametrize("arch", ["ResNet50", "swinT", "swinB", "convnextT", "convnextB"])
def test_sda_on_imagenet_takes_the_published_generator_and_makes_the_published_rows(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = build(PipelineConfig, read_yaml("configs/pipelines/sda.yaml"))
    made = {c.name.removeprefix("seed1/"): c for c in commands(config, {"dataset": "Imagenet", "arch": arch})}
    assert list(made) == ["clean", "adapt_test", "generate", "align", "finetune", "adapt_clean", "evaluate_sda", "table_sda"]
    assert made["generate"].configs == ["configs/generate/Imagenet/dit.yaml"]
    assert "--num_per_class 50" in " ".join(made["generate"].words)
    published = build(PublishedConfig, read_yaml(made["table_sda"].configs[0]))
    shown = read_yaml(made["evaluate_sda"].configs[0])["systems"]
    assert published_rows(published, f"Imagenet {arch}").keys() == {"Source-only", "DDA", "SDA"} <= shown.keys()
    every = commands(config, {"dataset": "Imagenet", "arch": arch, "rows": "_table"})
    check_files(config, every, "Imagenet")
    assert {"seed1/degraded_distill", "seed1/adapted_distill", "seed1/finetune_unaligned"} <= {c.name for c in every}


SHIPPED = sorted(Path(__file__).parents[1].glob("configs/pipelines/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_pipelines_name_scripts_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = commands(build(PipelineConfig, read_yaml(path)), {"dataset": "Digits"})
    assert made
    for command in made:
        scripts = [word for word in command.words if word.endswith(".py")]
        assert scripts
        assert all(Path(script).is_file() for script in scripts)
