"""The worked example of docs/extending/perturbation.md, from training to tables, and what rows of
others may and may not do.
"""

from __future__ import annotations

import json
import pickle
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.photo_like import photo_like
from tests.scoring import rows_of
from tests.scripts import ROOT, Done, run_script
from tests.seed_results import SMALL, cell, make
from undegrade.evaluation.report import plots
from undegrade.evaluation.results import MEAN
from undegrade.utils.config import build, dump_yaml, read_yaml, to_tree
from undegrade.utils.data.batches import BatchSet
from undegrade.utils.data.cells import Cell
from undegrade.utils.data.perturbations.corruptions import Corruption
from undegrade.utils.data.perturbations.degradations import Degradation
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, PerturbationOptions
from undegrade.utils.data.perturbations.registry import find_perturbation
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.data.training import DataConfig
from undegrade.utils.data.views import OnTheFly
from undegrade.utils.registry import include

DOC = (ROOT / "docs/extending/perturbation.md").read_text(encoding="utf-8")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example outside the repository; its row is gone afterwards."""
    (tmp_path / "my_vignette.py").write_text(re.search(r"```python\n(.*?)```", DOC, re.S)[1])  # type: ignore[index]
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_vignette"
    sys.modules.pop("my_vignette", None)
    PERTURBATIONS._rows.pop("vignette", None)


@pytest.fixture
def vignette(module: str) -> str:
    include(["--include", module])
    return "vignette"


def command(number: int, *words: object) -> Done:
    """A command of the document, and more words."""
    line = re.search(r"```sh\n(.*?)```", DOC, re.S)[1].splitlines()[number]  # type: ignore[index]
    _, script, *given = shlex.split(line)
    return run_script(script, *given, *words).check()


def test_it_trains_sweeps_evaluates_and_adapts_by_the_commands_of_the_document(module: str, ddpm: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command(0, "--save_dir", runs, "--run_id", "one", "--data.limit", 40, "--data.perturbations.vignette.power", 3)
    config = read_yaml(runs / "vignette/one/config.yaml")
    assert config["data"]["degradations"] == ["vignette"] and config["data"]["perturbations"] == {"vignette": {"power": 3}}

    few = ("--runs", runs, "--limit", 20)
    command(1, *few, "--out", tmp_path / "sweep")
    *cells, _ = rows_of(tmp_path / "sweep")
    assert [(row["corruption"], row["severity"]) for row in cells] == [("vignette", level) for level in range(0, 100, 10)]
    meta = json.loads((tmp_path / "sweep/results.json").read_text())["meta"]
    assert meta["perturbations"] == {"vignette": {"power": 3.0}}  # those that the run was trained with

    done = command(2, *few, "--out", tmp_path / "drawn")
    assert [row["corruption"] for row in rows_of(tmp_path / "drawn")] == ["vignette", "vignette+noise", "mean"]
    assert "random levels" in done.out

    words = ("--model_path", ddpm, "--save_dir", tmp_path / "adapted", "--limit", 3)
    command(3, *words, "--input.perturbations.vignette.power", 3)
    folder = tmp_path / "adapted/vignette/random"
    assert len(list(folder.rglob("*.png"))) == 3
    assert json.loads((folder / "settings.json").read_text())["input"]["vignette"] == {"power": 3.0}


def test_it_is_a_column_of_tables_with_its_unit(module: str, tmp_path: Path) -> None:
    rows = [cell("soup", "vignette", level, 90 - level) for level in (0, 40, 80)] + [cell("soup", MEAN, 0, 50)]
    published = SMALL | {"columns": {"vignette": "Vignette"}, "rows": {}}
    with mock.patch.object(plots, "severity_plot", wraps=plots.severity_plot) as drawn:
        done = make(tmp_path, [rows], "--include", module, published=published).check()
    assert "Vignette" in done.out
    assert drawn.call_args.kwargs["titles"] == {"vignette": ("Vignette", "percent of light lost in the corners")}


def test_batches_and_their_workers_have_it(vignette: str) -> None:
    source = open_source("Digits", "test", limit=6)
    batches = BatchSet(source, [vignette], 6, 0)
    batch = batches[0, 0]
    level = find_perturbation(vignette).draw(source.keys, 0)
    assert torch.equal(batch["degraded"] * 255, find_perturbation(vignette).apply(source.images(range(6)), level, source.keys, 0))
    assert torch.equal(batch["level"], level / 90)
    sent = pickle.dumps(batches)
    del PERTURBATIONS._rows[vignette]  # as in a worker that was started afresh
    assert torch.equal(pickle.loads(sent)[0, 0]["degraded"], batch["degraded"])


def test_options_are_read_strictly_kept_and_part_of_identities(vignette: str) -> None:
    given = build(DataConfig, {"perturbations": {"vignette": {"power": 4}}}, "data")
    assert build(DataConfig, to_tree(given), "data") == given and dump_yaml(to_tree(given))
    image, keys = photo_like(1, 32), ["a"]
    row = find_perturbation(vignette)
    assert not torch.equal(row.apply(image, 50, keys, 0, given), row.apply(image, 50, keys, 0))
    assert row.identity(given, 32) == {"vignette": {"power": 4.0}} and row.identity(PerturbationOptions(), 32) == {}
    assert find_perturbation("noise+vignette").identity(given, 32) == {"vignette": {"power": 4.0}}
    usual = PerturbationOptions(perturbations={"vignette": {"power": 2.0}})
    source = open_source("Digits", "test", limit=6)
    first, second, third = (
        OnTheFly(source, options=options).identity(Cell("vignette")) for options in (usual, DataConfig(), given)
    )
    assert first == second != third and usual.changed() == {}
    assert OnTheFly(source).identity(Cell("noise")) == OnTheFly(source, options=given).identity(Cell("noise"))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"vignette": {"powr": 3}}, "unknown config key 'powr' in section 'perturbations.vignette': did you mean 'power'"),
        ({"vignete": {}}, "unknown perturbation 'vignete' in section 'perturbations': did you mean 'vignette'"),
        ({"vignette": {"power": "high"}}, "perturbations.vignette.power"),
        ({"fog": {"power": 3}}, "'fog' has no options of its own"),
    ],
)
def test_options_that_do_not_exist_are_refused(vignette: str, tree: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PerturbationOptions(perturbations=tree)
    with pytest.raises(ValueError, match=re.escape(message)):
        build(DataConfig, {"perturbations": tree}, "data")


@pytest.mark.parametrize("wrong", [lambda images, *_: images / 2, lambda images, *_: images[..., :1]])
def test_a_function_that_gives_something_else_than_images_is_refused(wrong: Callable) -> None:
    row = Degradation(name="wrong", function=wrong, sweep=(0, 1), description="none")
    with pytest.raises(ValueError, match=r"the function of 'wrong' gave .*: expected torch.uint8 \[1, 3, 32, 32\]"):
        row.apply(photo_like(1, 32), 1, ["a"], 0)


def test_a_corruption_of_others_may_have_constants_of_some_image_sizes_only() -> None:
    sets = {name: tuple((step / 10 if name == "cifar" else step / 5,) for step in range(1, 6)) for name in ("cifar", "imagenet")}
    row = Corruption(name="darker", function=lambda images, generators, share: images * (1 - share), constants=sets)
    grey = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    assert row.apply(grey, torch.tensor([1, 5]), ["a", "b"], 0)[:, 0, 0, 0].tolist() == [
        90,
        50,
    ]  # 64 px are nearer to 32 than to 224
    assert row.apply(grey, 5, ["a", "b"], 0, PerturbationOptions(constants="imagenet")).unique().tolist() == [0]
    assert row.identity(PerturbationOptions(), 64) == {"constants": "cifar"} and row.cells([1, 3]) == [1, 3]
    with pytest.raises(ValueError, match="unknown set of corruption constants 'tiny' in darker"):
        row.apply(grey, 5, ["a", "b"], 0, PerturbationOptions(constants="tiny"))
