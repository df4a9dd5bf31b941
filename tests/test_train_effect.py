"""Every key that a training accepts has an effect, or is refused with what to use."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.checkpoints import finished_run
from tests.reading import keys_of, recorded
from tests.scripts import run_script
from undegrade.trainers import entry
from undegrade.trainers.classification import ClassifierConfig
from undegrade.trainers.config import LoopConfig, OptimizerConfig, TrainConfig
from undegrade.trainers.denoising import DenoiserConfig, DenoisingConfig
from undegrade.trainers.distillation import DistillationConfig
from undegrade.trainers.effect import check_keys
from undegrade.trainers.supervised import SupervisedConfig
from undegrade.utils.config import Tree, build, merge, nested, to_tree
from undegrade.utils.data.augmentation import AugmentConfig
from undegrade.utils.data.training import DataConfig

SUPERVISED: Tree = {"name": "x", "method": {"name": "supervised"}}


def of(changes: Tree) -> Tree:
    return functools.reduce(merge, (nested(key, value) for key, value in changes.items()), {})


@pytest.mark.parametrize(
    ("given", "changes", "reason"),
    [
        ({"optimizer.momentum": 0.5}, {"optimizer.name": "AdamW"}, "AdamW has none"),
        ({"optimizer.gamma": 0.5}, {"optimizer.schedule": "cosine"}, "the schedule is cosine"),
        ({"optimizer.milestones": [1]}, {"optimizer.schedule": "constant"}, "the schedule is constant"),
        ({"optimizer.min_lr": 0.001}, {}, "the schedule is multistep"),
        ({"optimizer.warmup_start": 0.5}, {}, "optimizer.warmup_epochs is 0"),
        ({"data.pairing": "independent"}, {}, "data.degradations are none"),
        ({"data.levels": "shared"}, {}, "data.degradations are none"),
        ({"data.adapted": "x"}, {}, "data.degradations are none"),
        ({"method.view": "clean"}, {}, "data.degradations are none"),
        ({"data.adapted_view": "adapted"}, {"data.degradations": ["blur"]}, "data.adapted is null"),
        ({"data.compat.rounding": "truncate"}, {}, "it is not for clean images, leave it out"),
        ({"data.compat.rounding": "truncate"}, {"data.degradations": ["jpeg"]}, "it is not for jpeg, leave it out"),
        ({"data.constants": "tiny"}, {"data.degradations": ["blur", "noise"]}, "it is not for blur, noise, leave it out"),
        (
            {"data.constants": "tiny"},
            {"data.degradations": ["fog"], "data.adapted": "x"},
            "the images of data.adapted are",
        ),
        ({"data.levels": "shared"}, {"data.degradations": ["blur"], "data.adapted": "x"}, "the levels of adapted images are"),
        ({"data.augment.interpolation": "bicubic"}, {}, "nothing is interpolated"),
        ({"data.augment.erasing_area": [0.1, 0.2]}, {}, "data.augment.erasing is 0"),
        ({"data.augment.cutout_clean": True}, {}, "data.augment.cutout and erasing are 0"),
        ({"data.root": "x"}, {}, "Digits come with scikit-learn"),
        ({"model.pretrained": True}, {"model.init_from": "x"}, "the weights are those of model.init_from"),
        ({"method.temperature": 2.0}, {"method.name": "distillation"}, "method.logit_weight is 0"),
        ({"method.label_dropout": 0.2}, {"method.name": "denoising"}, "the network is told no class, see model.class_conditional"),
        ({"data.degradations": ["jpeg"]}, {"method.name": "denoising"}, "a diffusion model learns from clean images"),
    ],
)
def test_a_key_without_effect_is_refused_with_the_reason(given: Tree, changes: Tree, reason: str) -> None:
    tree = merge(merge(SUPERVISED, of(changes)), of(given))
    with pytest.raises(ValueError, match=rf"^--{next(iter(given))} has no effect here: {reason}"):
        check_keys(build(TrainConfig, tree), of(given))


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer.momentum": 0.5, "optimizer.gamma": 0.5, "optimizer.warmup_epochs": 1, "optimizer.warmup_start": 0.1},
        {"optimizer.schedule": "epoch_cosine", "optimizer.min_lr": 0.001, "optimizer.parts": {"a": {"name": "AdamW"}}},
        {"optimizer.schedule": "poly", "optimizer.power": 0.5, "optimizer.min_lr": 0.001},
        {"optimizer.name": "AdamW", "optimizer.momentum": 0.5, "optimizer.parts": {"a": {"name": "SGD"}}},
        {
            "data": {"degradations": ["blur", "fog"], "constants": "tiny", "compat": {"rounding": "truncate"}},
            "method.view": "clean",
        },
        {"data.augment": {"resized_crop": 0.5, "interpolation": "bicubic", "erasing": 0.2, "cutout_clean": True}},
        {"method": {"name": "distillation", "logit_weight": 1.0, "temperature": 2.0}},
        {"method": {"name": "somebody's", "label_dropout": 0.1, "temperature": 2.0}},
    ],
)
def test_keys_with_an_effect_pass(given: Tree) -> None:
    tree = of(given)
    check_keys(build(TrainConfig, merge(SUPERVISED, tree)), tree)


def test_two_names_of_a_run_are_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path, "a", config=to_tree(build(TrainConfig, SUPERVISED))).parent
    done = run_script("train.py", "-r", run, "--run_id", "two")
    assert done.status == 2 and done.err == f"error: -r {run} and --run_id two both name the run: give one\n"


OF_TRAINING = (TrainConfig, DataConfig, OptimizerConfig, LoopConfig, AugmentConfig, ClassifierConfig, SupervisedConfig)
OF_OTHERS = (DenoiserConfig, DenoisingConfig, DistillationConfig)


@pytest.mark.slow
def test_every_key_is_read(tmp_path: Path) -> None:
    small: Tree = {"save_dir": str(tmp_path), "data": {"limit": 20, "batch_size": 10}, "loop": {"epochs": 1}}
    cut: Tree = {"data": {"degradations": ["fog", "noise"], "augment": {"cutout": 4, "erasing": 0.5, "randaugment": "rand-m1-n1"}}}
    cosine: Tree = {"optimizer": {"schedule": "cosine", "warmup_epochs": 0.5, "name": "AdamW", "min_lr": 1e-4}}
    distilled = {"name": "distillation", "teachers": "x", "logit_weight": 1.0}
    tiny = {"channels": [32], "class_conditional": True, "diffusion_steps": 10}
    with recorded(*OF_TRAINING, *OF_OTHERS) as read:
        for method, more in (
            ({"name": "supervised", "mixup": 0.1}, cosine),
            (distilled, cut),
            ({"name": "denoising"}, {"model": tiny, "loop": {"monitor": "loss"}, "optimizer": {"schedule": "poly"}}),
        ):
            entry.run(build(TrainConfig, merge(merge(small, {"name": "x", "method": method}), more)), "cpu")
    # names are read before the section is built; the network's are handed on as they are
    elsewhere = {f"{kind}Config.name" for kind in ("Supervised", "Denoising", "Distillation")} | keys_of(DenoiserConfig)
    adapted = {"DataConfig.adapted_view"}  # of adapted images alone: tests/test_restorer_training.py
    assert keys_of(*OF_TRAINING, *OF_OTHERS) - read - elsewhere - adapted == set()
