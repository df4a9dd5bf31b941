"""Adapters of other packages: the example of docs/extending/adapter.md, what the contract asks for,
and mistakes.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapting import SCRIPT, manifest_of, pngs, save_images
from tests.photo_like import photo_like
from tests.scripts import ROOT, Done, launch, program, run_script
from undegrade.image_adapt.adapters import ADAPTERS, Adapter, Context, Passes, option
from undegrade.image_adapt.config import AdaptConfig, InputConfig, adapt_schema
from undegrade.image_adapt.scripts import image_sample
from undegrade.image_adapt.work import adapt_batch, plan_jobs
from undegrade.utils.registry import Registry

PAGE = (ROOT / "docs/extending/adapter.md").read_text()
(MODULE,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
MPIEXEC = program("mpiexec")
SIZES = {"a/wide": (30, 20), "a/tall": (11, 24), "square": (16, 16)}


@pytest.fixture
def without_new_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows that the test adds are gone after it."""
    for name in ("_rows", "_origins", "_complete"):
        value = getattr(ADAPTERS, name)
        monkeypatch.setattr(ADAPTERS, name, value.copy() if isinstance(value, dict) else value)
    yield
    sys.modules.pop("my_median", None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_new_rows: None) -> Path:
    """A working folder with `my_median.py` and `photos` of three sizes."""
    (tmp_path / "my_median.py").write_text(MODULE)
    for name, (width, height) in SIZES.items():
        path = tmp_path / f"photos/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = photo_like(1, 32)[0, :, :height, :width].permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def documented(command: str, *more: object) -> Done:
    words = command.split()
    return run_script(SCRIPT, *words[words.index(SCRIPT) + 1 :], *more)


def median_of(path: Path, size: int) -> np.ndarray:
    image, edge = np.asarray(Image.open(path)), size // 2
    padded = np.pad(image, ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
    return np.median(windows, axis=(-2, -1)).astype(np.uint8)


# --- the example


def test_the_example_filters_whole_photographs_without_a_model_and_goes_on_where_it_was_stopped(place: Path) -> None:
    plan = documented(COMMANDS[0], "--dry_run", "--time").check().out
    assert "network passes an image: 0 forward, 0 backward; in all 0 and 0" in plan and "time: " in plan
    assert not (place / "out").exists()
    assert "adapted 3 images" in documented(COMMANDS[0]).check().err
    assert set(pngs(place / "out")) == {f"{name}.png" for name in SIZES}
    for name in SIZES:
        assert np.array_equal(np.asarray(Image.open(place / f"out/{name}.png")), median_of(place / f"photos/{name}.png", 3))
    settings = json.loads((place / "out/settings.json").read_text())
    assert (settings["adapter"], settings["parameters"]) == ("median", {"size": 3}) and "model" not in settings
    assert [row["file"] for row in manifest_of(place / "out")] == ["a/tall.png", "a/wide.png", "square.png"]
    before = pngs(place / "out")
    (place / "out/square.png").unlink()
    assert "adapted 1 images" in documented(COMMANDS[0]).check().err and pngs(place / "out") == before
    other = documented(COMMANDS[0].replace("--median.size 3", "--median.size 5"))
    assert other.status == 2 and "size: 3 there, 5 now" in other.err and pngs(place / "out") == before
    assert "adapted 3 images" in documented(COMMANDS[1].replace("3", "5"), "--overwrite", "true").check().err
    assert np.array_equal(np.asarray(Image.open(place / "out/a/wide.png")), median_of(place / "photos/a/wide.png", 5))


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python or on the PATH: pip install mpich")
def test_two_ranks_of_the_example_write_the_files_of_one(place: Path) -> None:
    documented(COMMANDS[0]).check()
    words = COMMANDS[1].replace("out", "two").replace(SCRIPT, str(ROOT / SCRIPT)).split()
    assert words[:4] == ["mpiexec", "-n", "2", "python"]
    environment = {"PYTHONPATH": f"{ROOT}:{place}"}
    here = [str(place / word) if word in ("photos", "two") else word for word in words[4:]]
    launch(MPIEXEC, "-n", 2, sys.executable, *here, **environment).check()
    assert pngs(place / "two") == pngs(place / "out")


def test_help_lists_the_options_of_the_example(place: Path) -> None:
    text = " ".join(run_script(SCRIPT, "--include", "my_median", "--help").check().out.split())
    found = re.search(r"--adapter ([a-z_]+\|\S+)", text)  # other tests may have added some
    assert found is not None and {"dda", "ilvr", "decorruptor", "median"} <= set(found[1].split("|")), found
    assert "options of median: --size VALUE sets median.size: side of the window in pixels, an odd number (default: 3)" in text


def test_an_entry_point_does_the_same_without_include(place: Path) -> None:
    point = metadata.EntryPoint("median", "my_median", "undegrade.adapters")
    monkey = mock.patch("undegrade.utils.registry.entry_points", lambda group: [point] if group == point.group else [])
    with monkey, mock.patch.object(ADAPTERS, "_complete", False), mock.patch.object(sys, "path", [str(place), *sys.path]):
        documented(COMMANDS[0].replace("--include my_median ", "")).check()
    assert set(pngs(place / "out")) == {f"{name}.png" for name in SIZES}


def test_images_of_a_data_set_and_of_layouts_keep_their_sizes(place: Path) -> None:
    words = ("--include", "my_median", "--adapter", "median", "--save_dir")
    run_script(SCRIPT, *words, "set", "--corruption", "fog", "--limit", 3).check()
    assert {row["input_side"] for row in manifest_of(place / "set/fog/5")} == {32}
    assert {Image.open(p).size for p in (place / "set").rglob("*.png")} == {(32, 32)}
    save_images(place / "in", ["fog/5/n01/a.JPEG"], 28)
    run_script(SCRIPT, *words, "tree", "--base_samples", "in", "--dataset", "imagenetc", "--corruption", "fog").check()
    assert Image.open(place / "tree/fog/5/n01/a.png").size == (28, 28)
    assert manifest_of(place / "tree/fog/5")[0]["input_side"] == 28


def test_a_broken_photograph_is_named_and_the_others_filtered_into_shards_too(place: Path) -> None:
    (place / "photos/b.png").write_text("no image")
    done = documented(COMMANDS[0], "--output", "tar", "--shard_size", 3)
    assert done.status == 1 and "adapted 3 images" in done.err and "broken: b: " in done.err
    assert len(list((place / "out").glob("*.tar"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "4"), "size 4 is no odd number above 0"),
        (("--median.sice", "3"), "unknown config key 'sice' in section 'median': did you mean 'size'?"),
        (("--model_path", "x"), "model x: the adapter median has none, leave --model_path (`model:` in the YAML) out"),
        (("--range_t", "3"), "--range_t is an option of the adapter ilvr, median is used here: leave it out"),
        (("--N", "3"), "--N is an option of the adapters dda, ilvr, median is used here: leave it out"),
        (("--image_size", "3"), "--image_size is an option of the adapters dda, ilvr, median is used here"),
        (("--use_fp16", "true"), "precision float16: the adapter median runs no network"),
        (("--enlarge", "true"), "--enlarge has no meaning for the adapter median"),
        (("--adapter", "medain"), "unknown adapter 'medain': did you mean 'median'?"),
    ],
)
def test_what_the_example_does_not_take_is_refused(place: Path, words: tuple[str, ...], message: str) -> None:
    done = documented(COMMANDS[0], *words)
    assert done.status == 2 and message in done.err and "Traceback" not in done.err and not (place / "out").exists()


# --- the contract


class Shift(Adapter):
    """Of 16 px images; adds a number that a file holds."""

    @dataclasses.dataclass(frozen=True)
    class Options:
        """Of `Shift`.

        Attributes:
            seed: has no flag of its own, since the script has it.
            amount: what is added.
            half: whether half of it.
        """

        seed: int = 7
        amount: float = option(0.0, "a", percent=lambda text, section: int(text) / 100 * (0.5 if section.get("half") else 1))
        half: bool = False

    needs_model = True
    image_size = 16
    passes = Passes(2, 1)

    @classmethod
    def open(cls, options: Options, context: Context) -> Adapter:
        adapter = cls(options)
        adapter.model = Path(context.model or "").read_text()  # type: ignore[attr-defined]
        return adapter

    def identity(self) -> dict:
        return super().identity() | {"model": self.model}  # type: ignore[attr-defined]

    def describe(self) -> str:
        return f"shift: {self.options.amount}"

    def adapt(self, x: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return x + self.options.amount


@pytest.fixture
def shift(place: Path) -> Callable[..., Done]:
    ADAPTERS.add("shift", Shift)
    (place / "Digits").write_text("seven")

    def run(*words: object) -> Done:
        given = ("--model_path", "{dataset}", "--save_dir", "out", "--corruption", "clean", "--limit", 2)
        return run_script(SCRIPT, "--adapter", "shift", *given, *words)

    return run


def test_an_adapter_opens_its_own_model_and_says_its_size_cost_and_identity(shift: Callable[..., Done], place: Path) -> None:
    plan = shift("--dry_run", "--a", 0.5).check().out
    assert "shift: 0.5" in plan and "2 forward, 1 backward; in all 4 and 2" in plan
    shift("--percent", 50, "--half", "yes", "--seed", 3, "--shift.seed", 5).check()
    settings = json.loads((place / "out/clean/0/settings.json").read_text())
    assert (settings["model"], settings["seed"]) == ("seven", 3)
    assert settings["parameters"] == {"seed": 5, "amount": 0.25, "half": True}
    assert {Image.open(p).size for p in (place / "out").rglob("*.png")} == {(16, 16)}
    done = run_script(SCRIPT, "--adapter", "shift", "--save_dir", "x", "--corruption", "clean")
    assert done.status == 2 and "--model_path is missing" in done.err


def test_flags_go_to_the_adapter_in_use_and_taken_names_stay_the_scripts(shift: Callable[..., Done]) -> None:
    config, _, _ = image_sample.parse(["--adapter", "shift", "--model_path", "x", "--save_dir", "y", "--a", "1", "--seed", "2"])
    assert (config.seed, config.shift.seed, config.shift.amount) == (2, 7, 1.0)  # type: ignore[attr-defined]
    done = shift("--a", 1, "--percent", 2)
    assert done.status == 2 and "--a and --percent say the same thing twice" in done.err


def test_two_adapters_of_one_name_are_refused_and_the_first_stays(place: Path) -> None:
    (place / "their_dda.py").write_text(MODULE.replace('"median"', '"dda"'))
    done = run_script(SCRIPT, "--include", "their_dda", "--help")
    assert done.status == 2 and "two adapters are called 'dda'" in done.err and "their_dda" in done.err


class Bare(Adapter):
    Options = dataclasses.make_dataclass("Options", [("weights", str)], frozen=True)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [("input", Adapter, "'input' is called like a key"), ("bare", Bare, "the option weights of the adapter bare has no default")],
)
def test_a_row_that_does_not_fit_the_configuration_is_refused(name: str, row: type[Adapter], message: str) -> None:
    rows: Registry[type[Adapter]] = Registry("adapter", "nobody.adapters")
    rows.add(name, row)
    with mock.patch("undegrade.image_adapt.config.ADAPTERS", rows), pytest.raises(ValueError, match=message):
        adapt_schema()


def test_an_adapter_that_changes_the_shape_is_refused() -> None:
    class Crop(Adapter):
        def adapt(self, x: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
            return x[..., 1:]

    with pytest.raises(ValueError, match=r"Crop makes images of shape \[2, 3, 8, 7\] from \[2, 3, 8, 8\]"):
        adapt_batch(Crop(), photo_like(2, 8), ["a", "b"], 0, 2, torch.device("cpu"))


def test_whole_images_are_planned_by_the_size_of_the_first(place: Path) -> None:
    (job,) = plan_jobs(AdaptConfig("out", input=InputConfig(folder="photos")), None)
    assert job.whole and job.pixels == 11 * 24 and job.input_side is None
    assert job.source.images([1]).shape == (1, 3, 20, 30)


def test_the_scripts_name_no_adapter() -> None:
    files = ["scripts/image_sample.py", "scripts/adapter_flags.py", "config.py", "work.py", "plan.py", "output.py", "adapter.py"]
    for file in files:
        code = re.sub(r'""".*?"""|#[^\n]*', "", (ROOT / "image_adapt" / file).read_text(), flags=re.S)
        assert not re.search(r"\b(dda|ilvr)\b", code, re.I), file
