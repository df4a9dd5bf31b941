"""Every YAML builds what it describes; every command of the documents and the pipelines is one that
its script takes.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from tests.adapting import opened
from tests.checkpoints import Parents
from tests.commands import check_command, of_comments, of_markdown, words_of
from tests.editing import saved_pipeline
from tests.scripts import ROOT, launch, run_script
from tests.shipped import COMPOSED, CONFIGS, PIPELINES, SHIPPED, names_in, runs_made_by, shipped_tree
from undegrade.evaluation.config import EvaluationConfig, expand
from undegrade.evaluation.published import PublishedConfig, check_published
from undegrade.image_adapt.config import adapt_schema
from undegrade.image_adapt.generator import GenerateConfig, ImageGenerator
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.trainers.config import TrainConfig, fill
from undegrade.trainers.consistency import ConsistentDenoiserConfig
from undegrade.trainers.editing import EditorConfig
from undegrade.trainers.editor_consistency import DistilledEditorConfig
from undegrade.trainers.feature_teachers import FeatureTeacherConfig
from undegrade.trainers.method import Context
from undegrade.trainers.methods import METHODS
from undegrade.trainers.optimizer import build_optimizer
from undegrade.trainers.repfusion import RepFusionConfig
from undegrade.trainers.restoration import RestorerConfig
from undegrade.trainers.soups import SoupConfig
from undegrade.utils.config import Tree, build, merge, read_yaml, to_tree
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import TEST_ONLY, open_source
from undegrade.utils.pipeline import check_files
from undegrade.utils.seeding import seed_everything
from undegrade.utils.stages import PipelineConfig, commands
from undegrade.utils.yaml_trees import parse_value

SCRIPTS = [
    "train.py", "train_all_deg.py", "test.py", "test_ensemble.py", "utils/model_soups.py", "utils/pipeline.py",
    "evaluation/approach_table.py", "evaluation/examples_command.py", "image_adapt/scripts/image_sample.py",
    "image_adapt/scripts/generate.py", "image_adapt/scripts/video_edit.py",
]  # fmt: skip


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return open_source("Digits", "train", limit=20)


# --- each file builds


def _builds_training(tree: Tree, parents: Parents, source: ImageSource) -> None:
    config = build(TrainConfig, merge(tree, {"save_dir": str(parents.root)}))
    degradations = config.data.degradations or (["jpeg"] if "{deg}" in config.name + str(config.method) else [])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, degradations=degradations))
    assert "{" not in fill(config.name, config) and "{" not in fill(config.data.adapted or "", config, split="train")
    context = Context(source, degradations, config)
    kind = METHODS[config.method["name"]]
    width = 16 if kind.model is EditorConfig else 8
    tiny: Tree = {"channels": [width] * len(config.model["channels"])} if isinstance(config.model.get("channels"), list) else {}
    if kind.model is RestorerConfig:
        tiny = {"channels": 4, "layers": 3}
    if config.model.get("pretrained"):  # a small network stands in for one whose weights would be downloaded
        assert timm.models.is_model_pretrained(config.model["arch"])
        tiny = {"arch": "test_convnext", "pretrained": False}
    arch = {**config.model, **tiny}.get("arch", "")
    if kind.model is EditorConfig and "init_from" in config.model:
        tiny = {"init_from": str(parents.root / "pipeline")}
        saved_pipeline(parents.root / "pipeline", channels=4)
    elif kind.model is EditorConfig:
        parents.make_autoencoder(fill(EditorConfig.autoencoder, config))
    elif parent := config.model.get("init_from"):
        if kind.model is DistilledEditorConfig:
            parents.make_editor(fill(parent, config))
        elif kind.model is ConsistentDenoiserConfig:
            parents.make_denoiser(fill(parent, config), {"channels": [8]})
        elif "channels" in config.model:
            parents.make_denoiser(fill(parent, config), {**config.model, **tiny})
        else:
            parents.make(fill(parent, config), arch)
    if isinstance(teacher := config.method.get("teacher", {}), dict) and config.method["name"] == "repfusion":
        checkpoint = fill(teacher.get("checkpoint", FeatureTeacherConfig.checkpoint), config)
        if teacher.get("kind") == "classifier":
            parents.make(checkpoint, arch)
        else:
            parents.make_denoiser(checkpoint, {"channels": [8]})
    for deg in degradations if "teachers" in config.method else []:
        parents.make(fill(config.method["teachers"].replace("{deg}", deg), config), arch)
    model, method_config = build(kind.model, {**config.model, **tiny}, "model"), build(kind.method, config.method, "method")
    method = kind.build(model, method_config, context).train()
    config.optimizer.by_part(method.parts)
    beside = dict.fromkeys(degradations, source) if config.data.adapted_view == "adapted" else None
    batch = next(BatchLoader(BatchSet(source, degradations, 2, 0, config.data.augment, beside=beside)).epoch(0))
    method(batch)["loss"].backward()
    build_optimizer(config.optimizer, method.student).step()
    assert all(torch.isfinite(p).all() for p in method.student.parameters())
    assert config.loop.monitor in method.monitors


def _builds_dense(tree: Tree, parents: Parents, source: ImageSource) -> None:
    own = open_source({"segmentation": "DigitScenes", "landmarks": "DigitPoints"}[tree["method"]["name"]], "validation", limit=4)
    _builds_training(tree, parents, own)


def _builds_fusion(tree: Tree, parents: Parents, source: ImageSource) -> None:
    config = build(SoupConfig, tree)
    stand_in = TrainConfig(config.name, data=config.data, model={"arch": config.arch})
    names = {fill(m.replace("{deg}", d), stand_in) for m in config.members for d in config.data.degradations}
    assert len(names) == len(config.data.degradations) and not any("{" in name for name in names)


def _builds_adaptation(tree: Tree, parents: Parents, source: ImageSource) -> None:
    config = build(adapt_schema(), merge(tree, {"input": {"corruptions": ["all", "jpeg"]}}))
    assert len(config.input.cells()) == 16
    assert opened(config).adapt(torch.zeros(1, 3, 32, 32), [torch.Generator()]).shape == (1, 3, 32, 32)
    assert "{" not in config.fill(config.save_dir) + config.fill(config.model or "")


def _builds_generation(tree: Tree, parents: Parents, source: ImageSource) -> None:
    config = build(GenerateConfig, tree)
    short = dataclasses.replace(config, respacing="2", image_size=None)
    generator = ImageGenerator(build_denoiser(8, [8], num_classes=3), None, short)
    assert generator.generate([2], [torch.Generator()]).shape == (1, 3, 8, 8)
    assert "{" not in config.fill(config.save_dir) + config.fill(config.model)


def leaves(tree: Tree, where: str = "") -> dict[str, object]:
    """Every value of a tree by its dotted key."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found


def _builds_compat(tree: Tree, parents: Parents, source: ImageSource) -> None:
    """It changes every option that it names, of training or of adaptation, and may follow every
    configuration of that kind.
    """
    schema, given = (TrainConfig, {"name": "x"}) if set(tree) == {"data"} else (adapt_schema(), {"model": "", "save_dir": ""})
    if "method" in tree:
        schema, given = TrainConfig, to_tree(build(TrainConfig, read_yaml("configs/repfusion/CIFAR10/ResNet18_hint.yaml")))
        given["method"] = to_tree(build(RepFusionConfig, given["method"], "method"))
    plain, changed = (leaves(to_tree(build(schema, merge(given, more)))) for more in ({}, tree))  # type: ignore[type-var]
    assert {key for key in leaves(tree) if plain[key] == changed[key]} <= {"data.pairing"}


def _builds_published(tree: Tree, parents: Parents, source: ImageSource) -> None:
    check_published(build(PublishedConfig, tree))


def _builds_evaluation(tree: Tree, parents: Parents, source: ImageSource) -> None:
    config = expand(build(EvaluationConfig, merge(tree, {"data": {"corruptions": ["all"], "sweep": []}})))
    assert config.systems and all(m.view == "raw" or m.view in config.views for m in config.members.values())
    assert len(config.data.cells()) == 15 * len(config.data.severities)


FAMILIES: dict[str, Callable[[Tree, Parents, ImageSource], None]] = {
    "ind": _builds_training,
    "sl": _builds_training,
    "sda": _builds_training,
    "deg_all": _builds_training,
    "diffusion": _builds_training,
    "editor": _builds_training,
    "segmentation": _builds_dense,
    "landmark": _builds_dense,
    "repfusion": _builds_training,
    "restoration": _builds_training,
    "adapt": _builds_adaptation,
    "generate": _builds_generation,
    "ensemble": _builds_evaluation,
    "_compat": _builds_compat,
    "published": _builds_published,
}
SPECIAL = {"_soups.yaml": _builds_fusion, "_ensemble.yaml": _builds_evaluation}  # of deg_all, by the end of the name


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_config_builds_what_it_describes(path: Path, tmp_path: Path, source: ImageSource) -> None:
    seed_everything(0)
    special = SPECIAL.items() if path.parts[1] == "deg_all" else ()
    builds = next((b for end, b in special if path.name.endswith(end)), FAMILIES[path.parts[1]])
    builds(read_yaml(path), Parents(tmp_path, source), source)


def test_data_sets_to_test_on_only_are_for_test_py_and_have_no_recipe() -> None:
    files = {path.stem: path for path in CONFIGS if path.parts[1] == "data" and path.stem in TEST_ONLY}
    assert {*files, "CIFAR10.1-v4"} == {*TEST_ONLY}
    for name, path in files.items():
        config = build(EvaluationConfig, {"members": {}, "systems": {}, **read_yaml(path)})
        assert config.data.dataset == name
    assert not [composed.path for composed in COMPOSED if composed.dataset.stem in TEST_ONLY]


@pytest.mark.parametrize("dataset", ["Digits", "CIFAR10", "CIFAR100", "TinyImagenet", "Imagenet", "ImageFolder"])
def test_stages_start_from_runs_that_other_stages_make(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another configuration, or a stage of a pipeline."""
    monkeypatch.setattr("undegrade.utils.stages._identity", lambda words, configs, before: "id")  # reads every configuration
    pipelines = [build(PipelineConfig, read_yaml(path)) for path in PIPELINES]
    networks = [path.stem for path in CONFIGS if path.parts[1] == "networks"]
    stages = [
        stage
        for config in pipelines
        for arch in networks
        for stage in commands(config, {"dataset": dataset, "arch": arch, "rows": "_table"})
    ]
    made = {name for stage in stages for name in runs_made_by(stage.words, dataset)}
    needed = set()
    for path in (p for p in SHIPPED if p.parts[2] == dataset):
        for deg in ("jpeg", "blur", "noise"):
            name, parents = names_in(shipped_tree(str(path)) or {}, dataset, deg)
            made.add(name)
            needed |= {parent for parent in parents if not parent.startswith("ckpt/")}  # published files
    assert len(needed) > 8 and needed <= made, f"no stage makes {sorted(needed - made)}"


@pytest.mark.parametrize("dataset", ["Digits", "CIFAR10", "some/photos"])
@pytest.mark.parametrize("path", PIPELINES, ids=str)
def test_checkpoints_that_a_stage_asks_for_are_of_earlier_stages(path: Path, dataset: str) -> None:
    made: set[str] = set()
    for stage in commands(build(PipelineConfig, read_yaml(path)), {"dataset": dataset}):
        asked = dict(zip(stage.words, stage.words[1:], strict=False)).get("--checkpoint")
        assert asked is None or asked in made, f"{stage.name} asks for {asked}"
        made |= set(runs_made_by(stage.words, Path(dataset).name))


@pytest.mark.parametrize("path", PIPELINES, ids=str)
def test_adapted_images_that_an_evaluation_looks_at_are_of_earlier_stages(path: Path) -> None:
    adapted: dict[str, set[str]] = {}
    for stage in commands(build(PipelineConfig, read_yaml(path)), {"dataset": "Digits"}):
        given = {word.removeprefix("--"): text for word, text in itertools.pairwise(stage.words) if word.startswith("--")}
        names = set(given.get("corruption", "").split(","))
        if "image_sample.py" in stage.script:
            adapted.setdefault(given["save_dir"], set()).update(names)
        tree = read_yaml(stage.configs[0]) if "only" in given else {}
        members = [m for name in parse_value(given.get("only", "[]")) for m in tree["systems"][name]["members"]]
        unseen = tree and {f"views.{view}" for view in tree["views"]} - {f"views.{tree['members'][m].get('view')}" for m in members}
        for key, folder in given.items():
            if key.startswith("views.") and key not in unseen:
                missing = names - adapted.get(re.sub(r"/edit\d+$", "", folder), set())
                assert not missing, f"{stage.name} looks at {missing} in {folder}, which no earlier stage adapts"


# --- commands in documents


def documented() -> list[tuple[str, str]]:
    """(where, command line) of the documents, the configs' headers and the scripts' docstrings."""
    documents = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))]
    found = [(str(path), line) for path in documents for line in of_markdown((ROOT / path).read_text())]
    for path in CONFIGS:
        header = re.match(r"(?:#.*\n)*", (ROOT / path).read_text())
        assert header is not None
        found += [(str(path), line) for line in of_comments(header[0])]
    for script in SCRIPTS:
        found += [(script, line) for line in of_comments((ROOT / script).read_text().split('"""')[1])]
    return found


@pytest.mark.parametrize(("where", "line"), documented(), ids=[f"{where}: {line}" for where, line in documented()])
def test_documented_command_is_understood(where: str, line: str) -> None:
    words = words_of(line)
    if words:
        check_command(words)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parts[1] not in ("data", "networks")], ids=str)
def test_config_opens_with_a_command_that_reads_it(path: Path) -> None:
    lines = [line for where, line in documented() if where == str(path)]
    made = [composition.path for composition in COMPOSED if composition.recipe == ROOT / path]
    assert any(f" {reads}" in line for line in lines for reads in made or [path]), f"{path} opens with {lines}"


def test_enough_commands_are_found_and_few_left_out() -> None:
    lines = documented()
    counts = collections.Counter(Path(where).parts[0] for where, _ in lines)
    assert counts["README.md"] > 5 and counts["docs"] > 150 and counts["configs"] > 50
    skipped = [line for _, line in lines if not words_of(line)]
    assert len(skipped) <= 4, skipped


@pytest.mark.parametrize(
    "line",
    [
        "python train.py -c configs/ind/Digits/ResNet20_nothing.yaml",
        "python train.py -c configs/ind/Digits/ResNet20_clean.yaml --learning_rte 0.1",
        "python train.py -c configs/ind/Digits/ResNet20_clean.yaml --loop.epoch 3",
        "python train.py -c configs/ind/Digits/ResNet20_clean.yaml --model.arhc ResNet20",
        "python train.py -c configs/adapt/Digits/dda.yaml",
        "python trian.py -c configs/ind/Digits/ResNet20_clean.yaml",
        "python utils/model_soups.py --dataset Digit",
        "python test.py --dt jpeg",
        "python test.py -r some/run --dt jpg",
        "python test.py -r some/run --corruption all --severity 7",
        "python test.py -r some/run --predict photos --corruption fog",
        "python test_ensemble.py --corruption all",
        "python test_ensemble.py -c configs/ensemble/Digits/ResNet20_diffaud.yaml --ensemble sum",
        "mpiexec python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption fog",
        "mpiexec -n 2 python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption fgo",
        "mpiexec -n 2 python image_adapt/scripts/image_sample.py -c configs/adapt/Digits/dda.yaml --corruption fog --D 50",
        "mpiexec -n 2 python image_adapt/scripts/generate.py -c configs/generate/Digits/conditional.yaml --classes 9-0",
        "mpiexec -n 2 python image_adapt/scripts/generate.py -c configs/generate/Digits/conditional.yaml --cfg_scale 2",
        "python utils/pipeline.py -c configs/pipelines/diffaud.yaml --datset Digits",
        "make dmo",
        "make demo DATASTE=x",
        "pyhton train.py -c configs/ind/Digits/ResNet20_clean.yaml",
    ],
)
def test_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_command(words_of(line))


def test_commands_are_found_in_documents() -> None:
    markdown = "text\n```bash\npython a.py \\\n  --b 1   # remark\n# only a remark\nmake demo\n```\n```\nno command\n```\n"
    assert [words_of(line) for line in of_markdown(markdown)] == [["python", "a.py", "--b", "1"], ["make", "demo"]]
    header = "# Some text: python is not first\n#   python a.py --dt x     (then y) --c z\nkey: value\n"
    assert [words_of(line) for line in of_comments(header)] == [["python", "a.py", "--dt", "x", "--c", "z"]]
    assert words_of("python a.py -r <run folder>") == [] == words_of("python a.py -c ...")
    assert words_of("CUDA_VISIBLE_DEVICES=0 python a.py") == ["python", "a.py"]


# --- pipelines


@pytest.mark.parametrize("dataset", ["Digits", "CIFAR10", "some/photos"])
@pytest.mark.parametrize("path", PIPELINES, ids=str)
def test_every_command_of_a_pipeline_is_understood(path: Path, dataset: str) -> None:
    stages = commands(build(PipelineConfig, read_yaml(path)), {"dataset": dataset, "out": "runs/x"})
    assert len(stages) > 5
    check_files(build(PipelineConfig, read_yaml(path)), stages)
    files = [
        config for stage in stages for config in stage.configs if not config.startswith(("configs/published", "configs/_compat"))
    ]
    family = dataset if dataset != "some/photos" else "ImageFolder"
    made_of_it = {"DigitScenes", "DigitPoints"} if dataset == "Digits" else set()
    assert family in (used := {Path(file).parts[2] for file in files}) and used <= {family, *made_of_it}
    for stage in stages:
        check_command(stage.words)


def test_dry_run_of_the_pipeline_prints_its_commands() -> None:
    done = run_script("utils/pipeline.py", "-c", PIPELINES[0], "--dataset", "Digits", "--dry_run").check()
    lines = done.out.partition("\n\n")[0].splitlines()
    assert len(lines) > 5 and all(re.match(r"[\w/-]+: .*\.py ", line) for line in lines)


# --- help


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_printed(script: str) -> None:
    done = run_script(script, "--help").check()
    assert done.out.startswith(f"usage: {Path(script).name}") and ("--config" in done.out or "--include" in done.out)
    assert len(done.out.splitlines()) > 8 and done.err == ""


@pytest.mark.parametrize("script", ["train.py", "image_adapt/scripts/image_sample.py"])
def test_help_comes_quickly_in_a_process_of_its_own(script: str) -> None:
    assert "usage: " in launch(sys.executable, script, "--help", timeout=60).check().out
