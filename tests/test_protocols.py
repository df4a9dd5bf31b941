"""Streams of test images: their order, what they are made of, and how one is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.photo_like import photo_like
from undegrade.evaluation.ensemble import Member, Scorer
from undegrade.evaluation.protocols import PATH, Protocol, read_protocol, stretches
from undegrade.utils.config import build
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.passages import PASSAGES, passage_of
from undegrade.utils.data.sources.image_source import array_source
from undegrade.utils.data.views import FolderTree, OnTheFly

COUNT, CLASSES = 40, 4
LABELS = np.arange(COUNT) % CLASSES
CELLS = [Cell("clean", 0), Cell("gaussian_noise", 5), Cell("fog", 5)]


def plan_of(cells: list[Cell] = CELLS, **keys: Any) -> list:
    return stretches(build(Protocol, keys), cells, LABELS)


@pytest.mark.parametrize("order", ["shuffled", "listing", "by_class"])
@pytest.mark.parametrize("shifts", ["reset", "continual", "gradual", "mixed"])
def test_every_image_of_every_cell_comes_once_a_visit(shifts: str, order: str) -> None:
    plan = plan_of(shifts=shifts, order=order)
    for stretch in plan:
        seen = sorted(zip(stretch.place.tolist(), stretch.rows.tolist(), strict=True))
        assert seen == [(place, row) for place in range(len(stretch.cells)) for row in range(COUNT)]
    assert {cell for stretch in plan for cell in stretch.cells} >= set(CELLS)
    assert plan[0].anew


def test_when_a_predictor_starts_anew() -> None:
    assert [stretch.anew for stretch in plan_of(shifts="reset")] == [True] * 3
    assert [stretch.anew for stretch in plan_of(shifts="continual")] == [True, False, False]
    mixed = plan_of(shifts="mixed")
    assert [(stretch.cells, stretch.anew) for stretch in mixed] == [((CELLS[0],), True), (tuple(CELLS[1:]), True)]
    gradual = plan_of(shifts="gradual")
    assert [stretch.cells[0] for stretch in gradual] == [
        CELLS[0], *(Cell("gaussian_noise", s) for s in PATH), *(Cell("fog", s) for s in PATH)
    ]  # fmt: skip
    assert [stretch.anew for stretch in gradual] == [True, True, *[False] * 17]


def test_the_key_says_the_order_and_a_seed_another_one() -> None:
    first, again, other = (plan_of(shifts="mixed", seed=seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first.rows, again.rows) and not np.array_equal(first.rows, other.rows)
    keys = {build(Protocol, tree).key for tree in ({}, {"seed": 1}, {"order": "by_class"}, {"order": "by_class", "delta": 1.0})}
    assert len(keys) == 4
    assert Protocol(order="listing", seed=1).key == Protocol(order="listing").key, "nothing is drawn"


def test_classes_come_together_the_more_the_smaller_delta_is() -> None:
    def neighbours(delta: float) -> float:
        labels = np.arange(400) % CLASSES
        (stretch,) = stretches(Protocol(order="by_class", delta=delta), CELLS[:1], labels)
        ordered = labels[stretch.rows]
        return float((ordered[1:] == ordered[:-1]).mean())

    assert neighbours(0.01) > 0.95 and neighbours(0.01) >= neighbours(100.0)
    (shuffled,) = stretches(Protocol(), CELLS[:1], np.arange(400) % CLASSES)
    assert (np.diff(shuffled.rows % CLASSES) == 0).mean() < 0.35


def test_smooth_streams_go_from_one_corruption_to_the_next() -> None:
    cells = [Cell("clean", 0), *(Cell(name, 5) for name in PASSAGES[:2])]
    plan = stretches(Protocol("continual", "smooth"), cells, LABELS, SOURCE.keys)
    assert [stretch.cells for stretch in plan] == [(cell,) for cell in cells]
    for stretch in plan[1:]:
        places = passage_of(stretch.cells[0].corruption).places(SOURCE.keys)[stretch.rows]
        assert sorted(stretch.rows) == list(range(COUNT)) and (np.diff(places) >= 0).all() and places[0] < 0.2 < 0.8 < places[-1]


@pytest.mark.parametrize(("shifts", "cell", "message"), [
    ("mixed", Cell("gaussian_noise~fog", 5), "write continual[+]smooth"),
    ("continual", Cell("fog", 5), "fog does not change on the way; give --corruption smooth"),
])  # fmt: skip
def test_what_does_not_change_on_the_way_has_no_smooth_stream(shifts: str, cell: Cell, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of([cell], shifts=shifts, order="smooth")


# --- on their way


class Remembering:
    """Logit 0 is the number of images before the batch since the reset; its state can be kept."""

    stateful, identity, device = True, "", torch.device("cpu")

    def __init__(self, classes: int = 2) -> None:
        self.seen, self.asked, self.num_classes = 0, 0, classes

    def reset(self) -> None:
        self.seen = 0

    def predict(self, x: Tensor) -> Tensor:
        logits = torch.full((len(x), self.num_classes), -1.0)
        logits[:, 0], logits[:, 1] = float(self.seen), x.mean((1, 2, 3))
        self.seen, self.asked = self.seen + len(x), self.asked + len(x)
        return logits

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


SOURCE = array_source("Toy/test", photo_like(COUNT, 8).numpy(), LABELS, list("abcd"), [f"{i:02d}" for i in range(COUNT)])


def scorer_of(cache: Path | None, on_images: Any = lambda count: None, classes: int = 2, **keys: Any) -> tuple[Scorer, Member]:
    member = Member("toy", Remembering(classes), "digest", OnTheFly(SOURCE, 1))
    return Scorer(cache, 8, on_images, protocol=build(Protocol, keys), cells={"toy": CELLS}), member


def logits(scorer: Scorer, member: Member) -> list[Tensor]:
    return [scorer.logits(member, cell) for cell in CELLS]


@pytest.mark.parametrize("shifts", ["reset", "continual", "gradual", "mixed"])
def test_logits_lie_at_their_image_whatever_the_order(shifts: str, tmp_path: Path) -> None:
    for cell, found in zip(CELLS, logits(*scorer_of(tmp_path, shifts=shifts)), strict=True):
        expected = member_view().source(cell).images(range(COUNT)).float().mean((1, 2, 3)) / 255
        assert torch.allclose(found[:, 1], expected, atol=1e-5)


def member_view() -> OnTheFly:
    return OnTheFly(SOURCE, 1)


def test_adapted_images_in_another_order_than_the_raw_ones_lie_at_their_image(tmp_path: Path) -> None:
    """Their files are listed by class and name; the raw ones are not."""
    raw, cell = member_view(), CELLS[1]
    for key, image in zip(SOURCE.keys, raw.source(cell).images(range(COUNT)), strict=True):
        path = tmp_path / cell.folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    mixed_up = SOURCE.subset(np.random.default_rng(0).permutation(COUNT))
    for shifts in ("reset", "mixed"):
        found = []
        for view in (OnTheFly(mixed_up, 1), FolderTree(tmp_path, mixed_up)):
            scorer = Scorer(None, 8, protocol=build(Protocol, {"shifts": shifts}), cells={"toy": [cell]})
            found.append(scorer.logits(Member("toy", Remembering(), "", view), cell))
        assert torch.equal(*found)


def test_a_mixed_stream_is_one_and_the_clean_images_are_before_it() -> None:
    clean, *mixed = logits(*scorer_of(None, shifts="mixed"))
    assert sorted(clean[:, 0].tolist()) == sorted(8.0 * (i // 8) for i in range(COUNT))
    assert sorted(torch.cat(mixed)[:, 0].tolist()) == sorted(8.0 * (i // 8) for i in range(2 * COUNT))


@pytest.mark.parametrize(("shifts", "all_images"), [("continual", 3 * COUNT), ("mixed", 3 * COUNT), ("gradual", 19 * COUNT)])
@pytest.mark.parametrize(("stopped", "classes"), [(3, 2), (7, 2), (12, 2), (7, 300)])  # of 300 logits are kept in half the room
def test_a_stopped_stream_goes_on_where_it_was(shifts: str, all_images: int, stopped: int, classes: int, tmp_path: Path) -> None:
    whole = logits(*scorer_of(None, classes=classes, shifts=shifts))
    seen = []

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == stopped:
            raise KeyboardInterrupt

    scorer, member = scorer_of(tmp_path, stop, classes, shifts=shifts)
    with pytest.raises(KeyboardInterrupt):
        logits(scorer, member)
    scorer, after = scorer_of(tmp_path, classes=classes, shifts=shifts)
    assert all(map(torch.equal, logits(scorer, after), whole))
    assert isinstance(member.predictor, Remembering) and isinstance(after.predictor, Remembering)
    assert member.predictor.asked + after.predictor.asked <= all_images


def test_a_state_of_another_stream_is_not_gone_on_from(tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    scorer, member = scorer_of(tmp_path, stop, shifts="mixed")
    with pytest.raises(KeyboardInterrupt):
        logits(scorer, member)
    for keys in ({"shifts": "mixed", "seed": 1}, {"shifts": "continual"}):
        assert all(map(torch.equal, logits(*scorer_of(tmp_path, **keys)), logits(*scorer_of(None, **keys))))
    (tmp_path / "toy/stream.pt").write_bytes(b"nothing")
    assert all(map(torch.equal, logits(*scorer_of(tmp_path, shifts="mixed")), logits(*scorer_of(None, shifts="mixed"))))


@pytest.mark.parametrize(("text", "keys"), [
    ("mixed", {"shifts": "mixed"}),
    ("by_class+delta=0.05+continual+seed=3", {"order": "by_class", "delta": 0.05, "shifts": "continual", "seed": 3}),
])  # fmt: skip
def test_a_protocol_is_read_from_its_words(text: str, keys: dict) -> None:
    assert read_protocol(text) == keys
    protocol = build(Protocol, keys)
    assert build(Protocol, read_protocol(protocol.key)) == protocol, "its key is such words"


@pytest.mark.parametrize(("text", "message"), [
    ("mixd", "unknown word 'mixd' in --protocol mixd: did you mean 'mixed'"),
    ("mixed+reset", r"--protocol mixed\+reset: reset is a second shifts"),
    ("size=3", "unknown word 'size='"),
])  # fmt: skip
def test_mistakes_in_a_protocol_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_protocol(text)
