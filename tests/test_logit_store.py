"""Logits in memory and on disk: how exact they are, and that nothing of it depends on the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from undegrade.evaluation.logit_store import StoredLogits, read_logits, stored_bytes, write_logits
from undegrade.evaluation.rules import RULES, combine, mixing_weights


def stored(logits: Tensor) -> StoredLogits:
    found = StoredLogits.empty(*logits.shape)
    for start in range(0, len(logits), 3):
        found[slice(start, start + 3)] = logits[start : start + 3]
    return found


def test_up_to_256_classes_they_are_as_they_were() -> None:
    logits = torch.randn(7, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stored(logits)[:], logits)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=2, max_size=20), st.integers(-5, 5), st.floats(-8, 2))
def test_of_more_the_highest_stays_the_highest_whatever_lies_beside_it(values: list[float], near: int, size: float) -> None:
    """Also where others are a few steps of float32 below it, or equal."""
    highest = np.float32(max(values))
    beside = [np.float32(10**size), highest]
    for _ in range(abs(near)):
        beside.append(np.nextafter(beside[-1], np.float32(-np.inf) if near < 0 else np.float32(0)))
    row = torch.full((300,), float(np.finfo(np.float32).min / 4))
    row[: len(values) + len(beside)] = torch.tensor(np.array([*beside, *values], np.float32))
    logits = torch.stack([row, row.flip(0)])
    found = stored(logits)[:]
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert torch.equal(found.argmax(1), logits.argmax(1))
    assert torch.equal(found == found.amax(1, keepdim=True), logits == logits.amax(1, keepdim=True)), "no tie is made or lost"
    assert torch.equal(found.amax(1), logits.amax(1))


def test_of_a_thousand_classes_rules_of_two_members_decide_as_before_but_for_few_images() -> None:
    """Members that agree and disagree as ImageNet's do: right on about half of the images."""
    generator, images = torch.Generator().manual_seed(0), 1000
    both = 1.5 * torch.randn(images, 1000, generator=generator)
    both[:, 0] += 5 + 3 * torch.randn(images, generator=generator)
    members = [both + scale * torch.randn(images, 1000, generator=generator) for scale in (0.8, 1.2)]
    exact, half = torch.stack(members), torch.stack([stored(member)[:] for member in members])
    for name, rule in RULES.items():
        if rule.mixes_images:
            found, expected = (mixing_weights(name, logits) for logits in (half, exact))
            torch.testing.assert_close(found, expected, rtol=0, atol=3e-4)
        else:
            found, expected = (combine(name, logits).argmax(1) for logits in (half, exact))
            assert (found != expected).sum() <= 1, name


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_file_gives_what_was_written_at_the_stated_size(tmp_path: Path, classes: int) -> None:
    logits = stored(torch.randn(50, classes, generator=torch.Generator().manual_seed(1)))
    write_logits(tmp_path / "a/l.npz", "of this", logits)
    found = read_logits(tmp_path / "a/l.npz", "of this")
    assert found is not None and torch.equal(found[:], logits[:])
    assert read_logits(tmp_path / "a/l.npz", "of that") is None
    assert (read_logits(tmp_path / "a/l.npz", "of this", exact=True) is None) == (classes > 256)
    assert stored_bytes(50, classes) <= (tmp_path / "a/l.npz").stat().st_size < stored_bytes(50, classes) + 1500


def test_imagenets_logits_take_a_tenth_of_a_gigabyte_a_cell_and_member() -> None:
    assert stored_bytes(50_000, 1000) / 1e9 == pytest.approx(0.1, abs=1e-3)


def test_a_file_of_exact_logits_gives_the_others(tmp_path: Path) -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(1))
    exact = StoredLogits.empty(5, 1000, exact=True)
    exact[:] = logits
    write_logits(tmp_path / "l.npz", "of this", exact)
    for wanted, expected in ((True, logits), (False, stored(logits)[:])):
        found = read_logits(tmp_path / "l.npz", "of this", wanted)
        assert found is not None and torch.equal(found[:], expected)


@given(st.data())
def test_any_damage_is_another_file_or_none(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("logits") / "l.npz"
    write_logits(path, "of this", stored(torch.arange(12.0).reshape(4, 3)))
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    path.write_bytes(content)
    found = read_logits(path, "of this")
    assert found is None or torch.equal(found[:], torch.arange(12.0).reshape(4, 3))
