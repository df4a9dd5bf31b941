"""Every key that an evaluation accepts has an effect, or is refused with what to use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.checkpoints import DIGITS, finished_run
from tests.photo_like import photo_like, save_all
from tests.reading import keys_of, recorded
from tests.scoring import rows_of
from tests.scripts import run_script
from undegrade.evaluation import config
from undegrade.evaluation.config import EvaluationConfig
from undegrade.evaluation.effect import check_keys
from undegrade.evaluation.evaluate import evaluate
from undegrade.utils.checkpoint import load_checkpoint
from undegrade.utils.config import Tree, build, merge, nested

SCHEMAS = (EvaluationConfig, config.TestDataConfig, config.MemberConfig, config.SystemConfig)


def tree_of(root: Path) -> Tree:
    return {
        "members": {"{deg}": {"checkpoint": "sl/{deg}"}, "other": {"checkpoint": "{arch}/jpeg", "view": "shown"}},
        "systems": {"all": {"members": ["{deg}"], "rule": "sum"}},
        "degradations": ["jpeg", "blur"],
        "views": {"shown": str(root)},
        "data": {"corruptions": ["fog", "blur"], "severities": [5], "limit": 10},
        "runs": str(root),
        "out": str(root / "out"),
    }


def test_every_key_is_read(tmp_path: Path) -> None:
    for seed, deg in enumerate(("jpeg", "blur")):
        finished_run(tmp_path, f"sl/{deg}", seed=seed, degradations=[deg])
    with recorded(*SCHEMAS) as read:
        evaluate(build(EvaluationConfig, tree_of(tmp_path)), torch.device("cpu"))
    assert read == keys_of(*SCHEMAS) - {"EvaluationConfig.rules"}  # of fitted rules: tests/test_fit_command.py


OF_CORRUPTION = [
    ({"data.severities": [3]}, {"data.corruptions": ["blur", "clean"]}, "blur, clean has no severities"),
    ({"data.severities": [3]}, {"data.corruptions": [], "data.sweep": ["fog"]}, "a sweep has all levels"),
    ({"data.seed": 3}, {"data.corruptions": ["clean"]}, "clean images have nothing that is drawn"),
    ({"data.constants": "cifar"}, {"data.corruptions": ["blur"]}, "it is not for blur, leave it out"),
    ({"data.compat.salt_value": 1}, {}, "it is not for fog, blur, leave it out"),
    ({"data.seed": 3}, {"systems.all.members": ["other"]}, "all members look at images that are perturbed already"),
    ({"data.constants": "cifar"}, {"systems.all.members": ["other"]}, "all members look at images that are perturbed already"),
    ({"data.root": "x"}, {}, "Digits come with scikit-learn"),
    ({"data.root": "x"}, {"data.dataset": "my/photos"}, "the images are those in my/photos"),
    ({"members.other.view": "raw"}, {}, "no system has this member here"),
    ({"views.shown": "x"}, {}, "no member looks at this view"),
    ({"rules": "x"}, {}, "no system has a fitted rule"),
    ({"arch": "ResNet56"}, {}, "`{arch}` stands in no checkpoint, view or folder"),
]


@pytest.mark.parametrize(("given", "changes", "reason"), OF_CORRUPTION)
def test_a_key_without_effect_is_refused_with_the_reason(tmp_path: Path, given: Tree, changes: Tree, reason: str) -> None:
    tree, words = tree_of(tmp_path), {}
    for key, value in {**changes, **given}.items():
        tree = merge(tree, nested(key, value))
    for key, value in given.items():
        words = merge(words, nested(key, value))
    with pytest.raises(ValueError, match=rf"^--{next(iter(given))} has no effect here: {reason}$"):
        check_keys(build(EvaluationConfig, tree), words)


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"data": {"severities": [3], "seed": 3, "constants": "cifar", "compat": {"rounding": "truncate"}}}, {}),
        ({"data": {"dataset": "CIFAR10", "root": "x", "limit": 3, "split": "validation", "subset": "s"}}, {}),
        ({"members": {"other": {"std": [1]}}, "views": {"shown": "y"}, "arch": "X"}, {"systems": {"all": {"members": ["other"]}}}),
        ({"members": {"jpeg": {"checkpoint": "x"}}, "batch_size": 3, "cache": False, "overwrite": True}, {}),
        ({"arch": "X"}, {"out": "runs/{arch}"}),
        ({"degradations": ["jpeg"], "systems": {"second": {"members": ["jpeg"]}}}, {}),
        ({"only": ["all"], "views": {"shown": "y"}, "members": {"other": {"std": [1]}}}, {}),
    ],
)
def test_keys_with_an_effect_pass(tmp_path: Path, given: Tree, changes: Tree) -> None:
    tree = merge(tree_of(tmp_path), changes)
    tree["members"] |= {"jpeg": {"checkpoint": "x"}}
    check_keys(build(EvaluationConfig, merge(tree, given)), given)


# --- test.py, whose one member and system are its own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--systems.x.rule", "sum"),
            "--systems.x.rule has no effect here: one checkpoint is evaluated, test_ensemble.py",
        ),
        (("--degradations", "[jpeg]"), "--degradations has no effect here: one checkpoint is evaluated, test_ensemble.py"),
        (("--members.second.checkpoint", "x"), "--members.second.checkpoint has no effect here: one checkpoint is evaluated"),
        (("--members.model.checkpoint", "x"), "--members.model.checkpoint has no effect here: use -r"),
        (("--members.model.view", "x"), "--members.model.view has no effect here: use --view"),
        (("--members.model.arch", "x"), "--members.model.arch has no effect here: use --arch"),
        (("--members.model.maen", "[0.5]"), "unknown config key 'maen' in section 'members.model': did you mean 'mean'?"),
        (("--mode", "x"), "--mode x is the folder below the run, --out"),
        (("--corruption", "clean", "--severity", "5"), "--data.severities has no effect here: clean has no severities"),
        (("--dt", "noise", "--severity", "5"), "--data.severities has no effect here: a sweep has all levels"),
        (("--arch", "ResNet56"), "holds a ResNet20, arch is ResNet56: make them equal"),
    ],
)
def test_keys_that_are_not_for_one_checkpoint_are_refused(
    classifier: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = run_script("test.py", "-r", classifier, "--out", tmp_path / "out", "--limit", 10, *words)
    assert done.status == 2 and message in done.err and not (tmp_path / "out").exists()


def test_the_mean_and_deviation_of_the_one_member_are_taken(classifier: Path, tmp_path: Path) -> None:
    words = ("--limit", 40, "--corruption", "clean")
    run_script("test.py", "-r", classifier, *words, "--out", tmp_path / "own").check()
    given = ("--members.model.mean", "[0.9,0.9,0.9]", "--members.model.std", "[0.1,0.1,0.1]")
    run_script("test.py", "-r", classifier, *words, *given, "--out", tmp_path / "given").check()
    assert rows_of(tmp_path / "own")[0]["metrics"] != rows_of(tmp_path / "given")[0]["metrics"]
    state, description = load_checkpoint(classifier)
    torch.save(state, tmp_path / "foreign.pth")
    statistics = [word for key in ("mean", "std") for word in (f"--members.model.{key}", description[key])]
    foreign = ("-r", tmp_path / "foreign.pth", "--arch", "ResNet20", *words, "--out", tmp_path / "foreign")
    assert "does not say with which mean and std" in run_script("test.py", *foreign).err
    run_script("test.py", *foreign, *statistics).check()
    assert rows_of(tmp_path / "foreign")[0]["metrics"] == rows_of(tmp_path / "own")[0]["metrics"]


# --- test_ensemble.py and prediction


def test_later_files_of_an_evaluation_are_taken_whole(classifier: Path, tmp_path: Path) -> None:
    first = {"members": {"a": {"checkpoint": str(classifier)}}, "systems": {"one": {"members": ["a"]}}}
    second = {"systems": {"two": {"members": ["a"]}}, "data": {"limit": 20, "corruptions": ["clean"]}, "cache": False}
    for name, tree in (("first", first), ("second", second)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    words = ("-c", tmp_path / "first.yaml", tmp_path / "second.yaml", "--out", tmp_path / "out")
    run_script("test_ensemble.py", *words).check()
    assert [(row["system"], row["n"]) for row in rows_of(tmp_path / "out")] == [("one", 20), ("two", 20)]
    assert not (tmp_path / "out/logits").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--overwrite", "true"), "--overwrite has no effect here: --predict writes the classes of images alone"),
        (("--cache", "false"), "--cache has no effect here: --predict writes the classes of images alone"),
        (("--data.classes", "{classes}"), "names its 10 classes itself, data.classes"),
    ],
)
def test_keys_that_are_not_for_prediction_are_refused(
    classifier: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(reversed(DIGITS)))
    save_all(tmp_path / "photos", ["a.png"], photo_like(1, 32))
    given = [word.format(classes=tmp_path / "classes.txt") for word in words]
    done = run_script("test.py", "-r", classifier, "--predict", tmp_path / "photos", "--data.image_size", 32, *given)
    assert done.status == 2 and message in done.err
