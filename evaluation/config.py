"""The sections of an evaluation YAML. Every key is documented here; an unknown key is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import undegrade.evaluation.tta  # noqa: F401  its methods are predictors
from undegrade.evaluation.predictors import read_options
from undegrade.evaluation.protocols import Protocol
from undegrade.evaluation.rules import FITTED, RULES
from undegrade.utils import choices
from undegrade.utils.choices import check_choice
from undegrade.utils.data.cells import Cell, parse_cells, sweep_cells
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.ranges import Count, Positive, Seed, Share

_CORRUPTION = "{corruption}"


@dataclasses.dataclass(frozen=True)
class TestDataConfig(SourceConfig):
    """What is evaluated on; further keys: see SourceConfig. test.py takes over those that the run
    was trained with.

    Attributes:
        split: test | validation (for tuning) | train.
        corruptions: names; `all` is the 15 of ImageNet-C, `imagenet-c-bar` those 10,
            `imagenet-3dcc-2d` the 3 of ImageNet-3DCC without depth, `smooth` passages from each
            of the 15 into the next, such as gaussian_noise~shot_noise; degradations and sequences
            get a level drawn for each image; `clean`.
        severities: of the corruptions, 1..5.
        sweep: degradations (or corruptions) to be evaluated at every level; `all` for the four
            degradations.
        seed: of the corruption.
    """

    split: Literal["test", "validation", "train"] = "test"
    corruptions: list[str] = field(default_factory=list)
    severities: list[Count] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    sweep: list[str] = field(default_factory=list)
    seed: Seed = 0

    def open_training(self) -> ImageSource:
        """The clean training images, all of them."""
        return dataclasses.replace(self, limit=None, subset=None).open("train")

    def cells(self) -> list[Cell]:
        """The cells asked for.

        Raises:
            ValueError: none, or an unknown name.
        """
        swept = [n for name in self.sweep for n in (DEGRADATIONS if name == "all" else [name])]
        cells = parse_cells(self.corruptions, self.severities) + [cell for name in swept for cell in sweep_cells(name)]
        if not cells:
            raise ValueError(
                "nothing to evaluate on: name corruptions (data.corruptions, --corruption) or a sweep (data.sweep, --dt)"
            )
        return list(dict.fromkeys(cells))  # a corruption may be both swept and listed


@dataclasses.dataclass(frozen=True)
class MemberConfig:
    """An ensemble member.

    Attributes:
        checkpoint: file, run folder or run name.
        view: `raw` (corrupted on the fly), a folder of adapted images, or the published `.npy`
            folder; a name of `views` stands for its value.
        arch, mean, std: of a checkpoint that does not say them
            (models.classification.loading.load_classifier).
        predictor: `{name: frozen}`, the checkpoint as it is, or another name of
            `evaluation.predictors.PREDICTORS` with its options.
    """

    checkpoint: str
    view: str = "raw"
    arch: str | None = None
    mean: list[Share] | None = None
    std: list[Positive] | None = None
    predictor: dict[str, Any] = field(default_factory=lambda: {"name": "frozen"})


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """A row of the table.

    Attributes:
        members: names of members, in the rule's order. `{deg}` stands for one member a degradation,
            `{corruption}` for the member named as the cell's degradation (an oracle, which is told
            the degradation; it has no other cells).
        rule: see evaluation/rules.py.
        fitted: of the rules gate and fitted, the file that evaluation/fit_command.py wrote, in the
            folder `rules`.
        double_softmax: as the reference program computed entropy and confidence.
    """

    members: list[str]
    rule: str = "first"
    fitted: str | None = None
    double_softmax: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """An evaluation YAML.

    Attributes:
        members: by name; `MemberConfig` keys. A member whose name has `{deg}` in it stands for one
            a degradation.
        systems: by the name shown in tables; `SystemConfig` keys.
        only: the systems that are evaluated; empty: all.
        degradations: for `{deg}`.
        views: short names of views; `{dataset}` and `{arch}` are replaced here and in the members'
            checkpoints.
        arch: for `{arch}`.
        data: see TestDataConfig.
        out: folder of results.json, results.csv, plots and the logit cache; `{dataset}` and
            `{arch}` are replaced.
        runs: root of the runs, for checkpoints by name.
        rules: folder of fitted rules; `{dataset}` and `{arch}` are replaced.
        protocol: order of the images for predictors that adapt themselves, and when these start
            anew.
        batch_size: images a forward pass; on a CPU fewer where they are large and the predictor is
            frozen (evaluation.ensemble.Scorer).
        cache: keep logits in `<out>/logits`, so that another rule or a second call costs no forward
            pass.
        overwrite: begin anew in `out`; else rows join those of the same configuration that are
            there, and those of another one are an error.
    """

    members: dict[str, MemberConfig]
    systems: dict[str, SystemConfig]
    only: list[str] = field(default_factory=list)
    degradations: list[str] = field(default_factory=list)
    views: dict[str, str] = field(default_factory=dict)
    arch: str = "ResNet20"
    data: TestDataConfig = field(default_factory=TestDataConfig)
    out: str = "runs/evaluation"
    runs: str = "runs"
    rules: str = "runs/fitted/{dataset}/{arch}"
    protocol: Protocol = field(default_factory=Protocol)
    batch_size: Count = 256
    cache: bool = True
    overwrite: bool = False


def expand(config: EvaluationConfig) -> EvaluationConfig:
    """The configuration with one member for each degradation where `{deg}` stands; checked.

    Raises:
        ValueError: a system with an unknown member or rule, or without members; an unknown
            predictor or option of one; `{deg}` without degradations, or in a member's name but not
            in its checkpoint.
    """

    def each(text: str) -> list[str]:
        if "{deg}" in text and not config.degradations:
            raise ValueError(f"member {text!r} stands for one a degradation: name them, degradations: [jpeg, blur, ...]")
        return [text.replace("{deg}", deg) for deg in config.degradations] if "{deg}" in text else [text]

    for key, given in config.members.items():
        if ("{deg}" in key) != ("{deg}" in given.checkpoint):
            raise ValueError(f"member {key!r} has the checkpoint {given.checkpoint!r}: write {{deg}} in both or in neither")
        read_options(given.predictor, f"members.{key}.predictor")
    members = {
        name: dataclasses.replace(member, checkpoint=checkpoint)
        for key, member in config.members.items()
        for name, checkpoint in zip(each(key), each(member.checkpoint), strict=True)
    }
    systems = {}
    for name in config.only:
        check_choice(name, config.systems, "system", "only")
    for name, system in config.systems.items():
        if config.only and name not in config.only:
            continue
        if not system.members:
            raise ValueError(f"system {name!r} has no members: name some of {', '.join(members)}")
        listed = [member for text in system.members for member in each(text)]
        for member in listed:
            if _CORRUPTION not in member:
                check_choice(member, members, "member", f"system {name!r}")
        if system.rule not in FITTED:
            RULES.get_row(system.rule, f"system {name!r}")
        if (system.rule in FITTED) != (system.fitted is not None):
            raise ValueError(
                f"system {name!r}: rule {system.rule!r}, fitted {system.fitted!r}: {' and '.join(FITTED)} have a file, others none"
            )
        if system.fitted is not None and any(_CORRUPTION in member for member in listed):
            raise ValueError(f"system {name!r}: a fitted rule has the same members in every cell, not {_CORRUPTION}: name them")
        systems[name] = dataclasses.replace(system, members=listed)
    return dataclasses.replace(config, members=members, systems=systems, out=fill_names(config, config.out))


def members_of(system: SystemConfig, cell: Cell, members: Mapping[str, Any]) -> list[str]:
    """Names of a system's members on a cell; none when the system has no such cell."""
    names = [member.replace(_CORRUPTION, cell.corruption) for member in system.members]
    return names if all(name in members for name in names) else []


def fill_names(config: EvaluationConfig, text: str) -> str:
    """`{dataset}` and `{arch}` replaced in names and paths."""
    return choices.fill_names(text, {"dataset": Path(config.data.dataset).name, "arch": config.arch}, f"{text!r}")
