"""The 11 ensemble rules of DiffAUD on the 75 cells of ImageNet-C: one pass a member for all of
them, and the cache of logits.

The reference program runs both members once for each rule, and the first once more on the mixed
images of the three rules that mix the input. Ours runs each member once for all rules; mixed images
still cost a pass each, so 25 passes become 5.
"""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measure import Row, core_seconds, in_turn, quiet, timed_row
from benchmarks.networks import classifier, forward_work, save_classifier
from undegrade.evaluation.config import EvaluationConfig, MemberConfig, SystemConfig, TestDataConfig
from undegrade.evaluation.ensemble import Member, Scorer
from undegrade.evaluation.evaluate import evaluate
from undegrade.evaluation.predictors import Frozen
from undegrade.evaluation.rules import rule_names
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.views import OnTheFly

ARCH, CELL = "ResNet20", Cell("contrast", 3)
OF_LOGITS = [rule for rule in rule_names(mixes_images=False) if rule not in ("vote", "first_and_mean")]  # of other systems
OF_IMAGES = rule_names(mixes_images=True)


def rows(quick: bool = False) -> list[Row]:
    """All rules against one rule at a time, and the second call of an evaluation against its
    first.
    """
    if quick:
        return [*_passes(10, 1), _second_call(10, ["contrast"], [1, 2], 1)]
    return [*_passes(100, 5), _second_call(20, ["all"], [1, 2, 3, 4, 5], 3)]


def _passes(images: int, repeats: int) -> list[Row]:
    """One cell, nothing kept: the other cells cost the same."""
    view = OnTheFly(open_source("Digits", "test", limit=images))
    classifiers = [_ready(seed) for seed in range(2)]
    members = [Member(f"m{seed}", Frozen(network), str(seed), view) for seed, network in enumerate(classifiers)]

    def together(rules: Sequence[str]) -> None:
        scorer = Scorer(None)
        for rule in rules:
            collections.deque(scorer.scores(rule, members, CELL), maxlen=0)  # part by part, none kept

    def one_by_one(rules: Sequence[str]) -> None:
        for rule in rules:
            together([rule])

    taken = in_turn(
        {
            "logits": lambda: one_by_one(OF_LOGITS),
            "images": lambda: one_by_one(OF_IMAGES),
            "logits, ours": lambda: together(OF_LOGITS),
            "all, ours": lambda: together([*OF_LOGITS, *OF_IMAGES]),
        },
        repeats,
    )
    work = images * forward_work(classifiers[0], view.clean.image_size)
    every = [a + b for a, b in zip(taken["logits"], taken["images"], strict=True)]
    few, many = len(OF_LOGITS), len(OF_LOGITS) + len(OF_IMAGES)
    return [
        timed_row(f"{few} rules of logits, a cell", taken["logits"], taken["logits, ours"], 2 * work, required=0.95 * few,
                  note=f"{few} passes of each of two {ARCH} become one; required: within 5 % of that"),
        timed_row(f"{many} rules, a cell", every, taken["all, ours"], (2 + len(OF_IMAGES)) * work,
                  note=f"{len(OF_IMAGES)} of them mix the images, by weights of each image: a pass each cannot be saved"),
    ]  # fmt: skip


def _ready(seed: int) -> Classifier:
    return classifier(ARCH, seed).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def _second_call(images: int, corruptions: list[str], severities: list[int], repeats: int) -> Row:
    """`evaluate` as test_ensemble.py calls it, with its table and plots."""
    rules = [*OF_LOGITS, *OF_IMAGES]
    with quiet(), tempfile.TemporaryDirectory() as folder:
        members = {f"m{i}": MemberConfig(str(save_classifier(ARCH, i, Path(folder) / f"{i}.safetensors"))) for i in range(2)}
        systems = {rule: SystemConfig(list(members), rule) for rule in rules}
        data = TestDataConfig(limit=images, corruptions=corruptions, severities=severities)
        config = EvaluationConfig(members, systems, data=data, out=f"{folder}/out")
        first, *others = [core_seconds(lambda: evaluate(config, torch.device("cpu"))) for _ in range(1 + repeats)]
    return timed_row(
        f"second call, {len(rules)} rules x {len(data.cells())} cells", [first] * repeats, others,
        note=f"{images} images against the first call; the plots are not drawn again, since nothing that they show has changed",
    )  # fmt: skip
