"""Ensemble members and their logits: how often networks run, and when the cache may be believed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.photo_like import photo_like
from undegrade.evaluation.ensemble import Member, Scorer
from undegrade.evaluation.predictors import Frozen
from undegrade.evaluation.rules import combine, mixing_weights, rule_names
from undegrade.models.classification.classifier import Classifier
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.data.sources.image_source import ImageSource, array_source
from undegrade.utils.data.views import OnTheFly

COUNT, CLASSES = 7, 3
SOURCE: ImageSource = array_source(
    "Toy/test", photo_like(COUNT, 16).numpy(), np.arange(COUNT) % CLASSES, list("abc"), [f"{i:02d}" for i in range(COUNT)]
)
CELL = Cell("gaussian_noise", 3)


@dataclasses.dataclass
class Counted:
    """A member and the number of images that its network has seen."""

    member: Member
    images: int = 0


def make_member(name: str, seed: int) -> Counted:
    """A linear network on noisy images; each member has its own weights and its own noise."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES))
    classifier = Classifier(network, "linear", CLASSES, (0.5,) * 3, (0.25,) * 3).eval()
    counted = Counted(Member(name, Frozen(classifier), f"digest{seed}", OnTheFly(SOURCE, seed)))
    network.register_forward_hook(lambda module, inputs, output: setattr(counted, "images", counted.images + len(output)))
    return counted


@pytest.fixture
def first() -> Counted:
    return make_member("clean", 1)


@pytest.fixture
def second() -> Counted:
    return make_member("adapted", 2)


def scores_of(scorer: Scorer, *given: object, **options: bool) -> Tensor:
    return torch.cat(list(scorer.scores(*given, **options)))  # type: ignore[arg-type]


def expected_logits(member: Member, cell: Cell = CELL) -> Tensor:
    with torch.no_grad():
        return member.predictor.predict(to_unit(member.view.source(cell).images(range(COUNT))))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_logits_are_those_of_the_classifier_on_its_view(first: Counted, batch_size: int) -> None:
    logits = Scorer(None, batch_size).logits(first.member, CELL)
    assert (logits.dtype, logits.shape) == (torch.float32, (COUNT, CLASSES))
    assert torch.allclose(logits, expected_logits(first.member), atol=1e-5)


def test_progress_is_told_the_images_of_each_batch(first: Counted) -> None:
    told: list[int] = []
    Scorer(None, 3, told.append).logits(first.member, CELL)
    assert told == [3, 3, 1]


def test_on_a_cpu_a_batch_of_large_images_is_smaller(first: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undegrade.evaluation.ensemble._CPU_PIXELS", 2 * 16 * 16)
    told: list[int] = []
    logits = Scorer(None, 3, told.append).logits(first.member, CELL)
    assert told == [2, 2, 2, 1]
    assert torch.allclose(logits, expected_logits(first.member), atol=1e-5)


@pytest.mark.parametrize("rule", rule_names(mixes_images=False))
def test_a_rule_applied_to_some_images_at_a_time_gives_what_it_gives_for_all(
    rule: str, first: Counted, second: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, members = Scorer(None), [first.member, second.member]
    whole = combine(rule, torch.stack([scorer.logits(member, CELL) for member in members]))
    monkeypatch.setattr("undegrade.evaluation.ensemble._RULE_ROWS", 3)
    assert torch.equal(scores_of(scorer, rule, members, CELL), whole)


# --- several members at once


class Watched:
    """A view that counts the images that are made."""

    name = "raw"

    def __init__(self) -> None:
        self.view, self.made = OnTheFly(SOURCE, 5), 0

    def source(self, cell: Cell) -> ImageSource:
        return dataclasses.replace(SOURCE, read=lambda rows: self._read(cell, rows))

    def _read(self, cell: Cell, rows: np.ndarray) -> Tensor:
        self.made += len(rows)
        return self.view.source(cell).images(rows)

    def identity(self, cell: Cell) -> str:
        return self.view.identity(cell)


def test_images_are_made_once_for_all_members_of_a_view(first: Counted, second: Counted, tmp_path: Path) -> None:
    told: list[int] = []
    view, scorer = Watched(), Scorer(tmp_path, 3, told.append)
    shared = [dataclasses.replace(counted.member, view=view) for counted in (first, second)]
    scorer.prepare([*shared, dataclasses.replace(first.member, name="elsewhere")], CELL)
    assert view.made == COUNT and sum(told) == 3 * COUNT
    assert (first.images, second.images) == (2 * COUNT, COUNT)
    for member in shared:
        assert torch.allclose(scorer.logits(member, CELL), expected_logits(dataclasses.replace(member, view=view.view)), atol=1e-5)
    assert view.made == COUNT


def test_members_whose_logits_are_known_are_left_out(first: Counted, second: Counted, tmp_path: Path) -> None:
    view = Watched()
    shared = [dataclasses.replace(counted.member, view=view) for counted in (first, second)]
    Scorer(tmp_path).prepare(shared[:1], CELL)
    Scorer(tmp_path).prepare(shared, CELL)
    assert view.made == 2 * COUNT and (first.images, second.images) == (COUNT, COUNT)
    Scorer(tmp_path).prepare(shared, CELL)
    assert view.made == 2 * COUNT


def test_only_the_latest_cell_stays_in_memory(first: Counted) -> None:
    scorer, other = Scorer(None), Cell("fog", 3)
    for cell in (CELL, CELL, other, other, CELL):
        scorer.logits(first.member, cell)
    assert first.images == 3 * COUNT


# --- the cache


def test_logits_are_computed_once_for_all_scorers_with_the_same_cache(first: Counted, tmp_path: Path) -> None:
    made = [Scorer(tmp_path).logits(first.member, CELL) for _ in range(3)]
    assert first.images == COUNT
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_without_cache_nothing_is_kept(first: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        Scorer(None).logits(first.member, CELL)
    assert first.images == 2 * COUNT
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [lambda member: dataclasses.replace(member, digest="of other weights"),
     lambda member: dataclasses.replace(member, view=OnTheFly(SOURCE, seed=99)),
     lambda member: dataclasses.replace(member, view=OnTheFly(SOURCE.subset([0, 1]), seed=1))],
    ids=["weights", "seed of the view", "images of the view"],
)  # fmt: skip
def test_a_change_of_weights_or_view_is_computed_anew(first: Counted, tmp_path: Path, change: Callable[[Member], Member]) -> None:
    scorer = Scorer(tmp_path)
    scorer.logits(first.member, CELL)
    changed = change(first.member)
    count = len(changed.view.source(CELL))
    logits = scorer.logits(changed, CELL)
    assert first.images == COUNT + count
    assert torch.equal(scorer.logits(changed, CELL), logits)
    assert first.images == COUNT + count
    assert torch.allclose(logits, Scorer(None).logits(changed, CELL))


def test_cells_and_members_do_not_share_cache_files(first: Counted, second: Counted, tmp_path: Path) -> None:
    scorer = Scorer(tmp_path)
    for _ in range(2):
        for counted in (first, second):
            for cell in (CELL, Cell("fog", 3), Cell("noise"), Cell("clean", 0)):
                assert torch.allclose(scorer.logits(counted.member, cell), expected_logits(counted.member, cell), atol=1e-5)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.npz"))
    assert files == [
        f"{name}/{cell}.npz" for name in ("adapted", "clean") for cell in ("clean-0", "fog-3", "gaussian_noise-3", "noise-random")
    ]


def damage(kind: str, content: bytes) -> bytes:
    if kind == "flipped":
        middle = len(content) // 3
        return content[:middle] + bytes(255 - b for b in content[middle : middle + 8]) + content[middle + 8 :]
    return {"empty": b"", "cut": content[: len(content) // 2], "text": b"no zip file", "short": content[:-10]}[kind]


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "short", "flipped"])
def test_a_damaged_cache_file_is_said_computed_anew_and_replaced(
    first: Counted, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Scorer(tmp_path).logits(first.member, CELL)
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(damage(kind, path.read_bytes()))
    for _ in range(2):
        assert torch.equal(Scorer(tmp_path).logits(first.member, CELL), whole)
        assert first.images == 2 * COUNT
    (said,) = caplog.messages
    assert said.startswith(f"cached logits {path} cannot be read (") and said.endswith("): they are made again")


def test_a_cache_file_of_other_content_is_computed_anew(first: Counted, tmp_path: Path) -> None:
    whole = Scorer(tmp_path).logits(first.member, CELL)
    (path,) = tmp_path.rglob("*.npz")
    for arrays in ({"a": np.ones(1)}, {"identity": np.array("x")}):
        np.savez(path, **arrays)
        assert torch.equal(Scorer(tmp_path).logits(first.member, CELL), whole)
    np.save(path.with_suffix(".npy"), np.ones(1))
    path.with_suffix(".npy").replace(path)
    assert torch.equal(Scorer(tmp_path).logits(first.member, CELL), whole)
    assert first.images == 4 * COUNT


# --- rules


@pytest.mark.parametrize("cached", [True, False])
def test_every_rule_of_logits_costs_one_pass_of_each_member(first: Counted, second: Counted, tmp_path: Path, cached: bool) -> None:
    """Without a cache on disk too: the logits of the latest cell stay in memory."""
    scorer = Scorer(tmp_path if cached else None)
    members = [first.member, second.member]
    logits = torch.stack([expected_logits(member) for member in members])
    first.images = second.images = 0
    for rule in rule_names(mixes_images=False):
        assert torch.allclose(scores_of(scorer, rule, members, CELL), combine(rule, logits), atol=1e-5), rule
    assert (first.images, second.images) == (COUNT, COUNT)


@pytest.mark.parametrize("rule", rule_names(mixes_images=True))
def test_an_input_rule_classifies_the_mixed_images_by_the_first_member(first: Counted, second: Counted, rule: str) -> None:
    members = [first.member, second.member]
    u = mixing_weights(rule, torch.stack([expected_logits(member) for member in members])).float()
    views = [to_unit(member.view.source(CELL).images(range(COUNT))) for member in members]
    mixture = u[:, 0, None, None, None] * views[0] + u[:, 1, None, None, None] * views[1]
    with torch.no_grad():
        expected = first.member.predictor.predict(mixture).double().softmax(1)
    assert torch.allclose(scores_of(Scorer(None, 3), rule, members, CELL), expected, atol=1e-5)


def test_an_input_rule_costs_one_more_pass_of_the_first_member_alone(first: Counted, second: Counted, tmp_path: Path) -> None:
    scorer, members = Scorer(tmp_path), [first.member, second.member]
    scores_of(scorer, "sum", members, CELL)
    for extra, rule in enumerate(rule_names(mixes_images=True), 1):
        for _ in range(2):  # the second time from the cache
            scores_of(scorer, rule, members, CELL)
        assert (first.images, second.images) == ((1 + extra) * COUNT, COUNT)


def test_mixed_logits_are_computed_anew_for_other_weights_views_and_double_softmax(
    first: Counted, second: Counted, tmp_path: Path
) -> None:
    scorer, members = Scorer(tmp_path), [first.member, second.member]
    plain = scores_of(scorer, "entropy_fuse", members, CELL)
    for change in ({"digest": "other"}, {"view": OnTheFly(SOURCE, seed=50)}):
        scores_of(scorer, "entropy_fuse", members, CELL)
        before = first.images
        scores_of(scorer, "entropy_fuse", [first.member, dataclasses.replace(second.member, **change)], CELL)  # type: ignore[arg-type]
        assert first.images == before + COUNT
    assert not torch.equal(scores_of(scorer, "entropy_fuse", members, CELL, double_softmax=True), plain)
    assert torch.equal(scores_of(scorer, "entropy_fuse", members, CELL), plain)


def test_an_unknown_rule_is_reported_with_the_closest(first: Counted) -> None:
    with pytest.raises(ValueError, match=re.escape("unknown ensemble rule 'entropi': did you mean 'entropy'? allowed: first,")):
        scores_of(Scorer(None), "entropi", [first.member], CELL)


def test_an_input_rule_of_one_member_is_reported(first: Counted) -> None:
    with pytest.raises(ValueError, match="ensemble rule 'entropy_fuse' needs exactly 2 members, not 1: give two"):
        scores_of(Scorer(None), "entropy_fuse", [first.member], CELL)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(first: Counted, tmp_path: Path, bad: float) -> None:
    with torch.no_grad():
        next(first.member.predictor.classifier.parameters())[0] = bad  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"member 'clean' gives logits that are nan or infinite for {COUNT} of {COUNT} images"):
        Scorer(tmp_path).logits(first.member, CELL)
    assert not list(tmp_path.rglob("*.npz"))
