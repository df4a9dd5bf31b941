"""YAML files, their bases, overrides from the command line, and typed configurations."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pytest

from undegrade.utils.config import build, dump_yaml, merge, nested, read_overrides, read_yaml, to_tree


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Section."""

    name: Literal["SGD", "AdamW"] = "SGD"
    lr: float = 0.1
    schedule: Literal["cosine", "constant"] | None = None


@dataclasses.dataclass(frozen=True)
class Member:
    """Entry of a dictionary of sections."""

    checkpoint: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Whole configuration."""

    name: str
    seed: int = 1
    limit: int | None = None
    degradations: list[str] = field(default_factory=list)
    optimizer: Optimizer = field(default_factory=Optimizer)
    members: dict[str, Member] = field(default_factory=dict)


def write(folder: Path, **files: str) -> Path:
    """Write `<name>.yaml` files; returns the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


# --- files and their bases


def test_later_bases_win_over_earlier_ones_and_the_file_over_all(tmp_path: Path) -> None:
    path = write(tmp_path, top="base: [low.yaml, high.yaml]\nc: 3\n", low="{a: 1, b: 1, c: 1}", high="{b: 2, c: 2}")
    assert read_yaml(path) == {"a": 1, "b": 2, "c": 3}


def test_bases_of_bases_are_found_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", middle="base: ../root.yaml\nm: 1\n")
    path = write(tmp_path, top="base: sub/middle.yaml\nt: 1\n", root="r: 1")
    assert read_yaml(path) == {"r": 1, "m": 1, "t": 1}


def test_sections_merge_key_by_key_while_lists_are_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, top="base: low.yaml\ns: {b: 2, l: [3]}\n", low="s: {a: 1, b: 1, l: [1, 2]}")
    assert read_yaml(path) == {"s": {"a": 1, "b": 2, "l": [3]}}


def test_one_base_may_be_reached_by_two_ways(tmp_path: Path) -> None:
    path = write(tmp_path, top="base: [left.yaml, right.yaml]", left="base: root.yaml", right="base: root.yaml", root="r: 1")
    assert read_yaml(path) == {"r": 1}


def test_a_circle_of_bases_is_reported_with_its_files(tmp_path: Path) -> None:
    path = write(tmp_path, one="base: two.yaml", two="base: one.yaml")
    with pytest.raises(ValueError, match=r"one\.yaml: `base:` goes in a circle: one\.yaml -> two\.yaml -> one\.yaml"):
        read_yaml(path)


@pytest.mark.parametrize("base", ["3", "{a: b}", "[1]", "null"])
def test_a_base_that_is_no_file_name_is_reported(tmp_path: Path, base: str) -> None:
    with pytest.raises(ValueError, match=r"top\.yaml: `base: .*must be a file name or a list of them, relative to this file"):
        read_yaml(write(tmp_path, top=f"base: {base}\n"))


def test_a_missing_file_is_reported_with_the_files_near_it(tmp_path: Path) -> None:
    write(tmp_path, ResNet20_clean="a: 1")
    with pytest.raises(FileNotFoundError, match=r"ResNet20_cleen\.yaml does not exist; did you mean .*ResNet20_clean\.yaml\?"):
        read_yaml(tmp_path / "ResNet20_cleen.yaml")


def test_a_missing_folder_is_reported_with_the_files_of_the_folder_above(tmp_path: Path) -> None:
    write(tmp_path, clean="a: 1")
    with pytest.raises(FileNotFoundError, match=r"Digit/clean\.yaml does not exist; did you mean .*clean\.yaml\?$"):
        read_yaml(tmp_path / "Digit" / "clean.yaml")


def test_a_missing_file_with_nothing_near_it_is_reported_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.yaml does not exist$"):
        read_yaml(tmp_path / "a" / "b" / "c" / "x.yaml")


def test_a_missing_base_is_reported_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist; .*near it: .*top\.yaml"):
        read_yaml(write(tmp_path, top="base: gone.yaml"))


# --- values


def test_merge_leaves_its_arguments_alone() -> None:
    low, high = {"s": {"a": 1}}, {"s": {"b": 2}}
    assert merge(low, high) == {"s": {"a": 1, "b": 2}}
    assert (low, high) == ({"s": {"a": 1}}, {"s": {"b": 2}})


def test_a_section_and_a_plain_value_replace_each_other() -> None:
    assert merge({"s": {"a": 1}}, {"s": None}) == {"s": None}
    assert merge({"s": 1}, {"s": {"a": 1}}) == {"s": {"a": 1}}


def test_a_dotted_place_is_a_nested_tree() -> None:
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}


# --- overrides


def test_overrides_are_read_with_space_and_with_equal_sign() -> None:
    arguments = ["--optimizer.lr", "1e-3", "--optimizer.name=AdamW", "--seed", "7", "--name=a=b"]
    expected = {"optimizer": {"lr": 1e-3, "name": "AdamW"}, "seed": 7, "name": "a=b"}
    assert read_overrides(arguments, ["seed", "name"]) == expected


def test_overrides_may_be_lists_null_and_negative_numbers() -> None:
    arguments = ["--data.degradations", "[jpeg, blur]", "--data.limit", "null", "--data.offset", "-3"]
    assert read_overrides(arguments) == {"data": {"degradations": ["jpeg", "blur"], "limit": None, "offset": -3}}


def test_the_last_of_two_equal_overrides_wins() -> None:
    assert read_overrides(["--a.b", "1", "--a.b", "2"]) == {"a": {"b": 2}}


def test_a_stray_word_is_reported() -> None:
    with pytest.raises(ValueError, match=r"unexpected argument 'Digits'; options look like --key value or --section\.key value"):
        read_overrides(["--a.b", "1", "Digits"])


@pytest.mark.parametrize("arguments", [["--optimizer.lr"], ["--optimizer.lr", "--data.limit", "3"]])
def test_a_flag_without_value_is_reported(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"option --optimizer\.lr has no value: write --optimizer\.lr VALUE or"):
        read_overrides(arguments)


def test_an_unknown_option_is_reported_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'sed': did you mean 'seed'\? allowed: name, seed"):
        read_overrides(["--sed", "3"], ["name", "seed"])


# --- typed configurations


def test_a_tree_becomes_typed_dataclasses_at_every_depth() -> None:
    tree = {
        "name": "x",
        "optimizer": {"lr": 1},
        "members": {"clean": {"checkpoint": "a"}, "other": {"checkpoint": "b", "weight": 2}},
    }
    config = build(Config, tree)
    assert config == Config("x", optimizer=Optimizer(lr=1.0), members={"clean": Member("a"), "other": Member("b", 2.0)})
    assert isinstance(config.optimizer.lr, float)


def test_building_leaves_the_tree_as_it_was() -> None:
    tree = {"name": "x", "members": {"clean": {"checkpoint": "a"}}}
    assert build(Config, tree) == build(Config, tree)
    assert tree == {"name": "x", "members": {"clean": {"checkpoint": "a"}}}


def test_a_configuration_written_as_yaml_is_read_back_equal(tmp_path: Path) -> None:
    config = Config("ü: {x}", 3, None, ["jpeg"], Optimizer("AdamW", 1e-5, "cosine"), {"a": Member("b")})
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(to_tree(config)), encoding="utf-8")
    assert build(Config, read_yaml(path)) == config


@pytest.mark.parametrize(
    ("tree", "where", "message"),
    [
        ({"name": "x", "sed": 1}, "", "unknown config key 'sed': did you mean 'seed'? allowed: name, seed, limit"),
        ({"name": "x", "optimizer": {"Lr": 1}}, "",
         "unknown config key 'Lr' in section 'optimizer': did you mean 'lr'? allowed: name, lr"),
        ({"name": "x", "members": {"a": {"chekpoint": "c"}}}, "",
         "unknown config key 'chekpoint' in section 'members.a': did you mean 'checkpoint'?"),
        ({"lrr": 1}, "method", "unknown config key 'lrr' in section 'method'"),
        ({"name": "x", "optimizer": {"name": "Adam"}}, "",
         "unknown value 'Adam' in config key 'optimizer.name': did you mean 'AdamW'? allowed: SGD, AdamW"),
        ({"name": "x", "optimizer": {"schedule": "cosin"}}, "",
         "unknown value 'cosin' in config key 'optimizer.schedule': did you mean 'cosine'? allowed: cosine, constant"),
        ({"name": "x", "optimizer": 3}, "", "config section optimizer must be `key: value` lines, not 3"),
        ({"name": "x", "members": {"a": "ckpt"}}, "", "config section members.a must be `key: value` lines, not 'ckpt'"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_reported_with_its_place_and_the_closest(tree: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(Config, tree, where)


@pytest.mark.parametrize(
    ("tree", "where", "key", "value"),
    [
        ({"name": "x", "seed": "many"}, "", "seed", "many"),
        ({"name": "x", "seed": 1.5}, "", "seed", 1.5),
        ({"name": "x", "seed": True}, "", "seed", True),
        ({"name": "x", "optimizer": {"lr": "fast"}}, "", "optimizer.lr", "fast"),
        ({"name": "x", "optimizer": {"lr": "1"}}, "", "optimizer.lr", "1"),
        ({"name": "x", "optimizer": {"lr": "fast"}}, "method", "method.optimizer.lr", "fast"),
        ({"name": "x", "optimizer": {"name": 3}}, "", "optimizer.name", 3),
        ({"name": "x", "degradations": "jpeg"}, "", "degradations", "jpeg"),
        ({"name": "x", "members": {"a": {"checkpoint": "c", "weight": "big"}}}, "", "members.a.weight", "big"),
        ({"name": "x", "members": {3: {"checkpoint": "c"}}}, "", "members", 3),
        ({"name": 3}, "", "name", 3),
    ],
)
def test_a_value_of_the_wrong_type_is_reported_with_key_value_and_type(
    tree: dict[str, Any], where: str, key: str, value: object
) -> None:
    with pytest.raises(
        ValueError, match=rf"^config key '{re.escape(key)}': expected .*, got {value!r}(; in quotes it is a text)?$"
    ):
        build(Config, tree, where)


@dataclasses.dataclass(frozen=True)
class Types:
    """One key of each type."""

    whole: int = 0
    real: float = 0.0
    choice: bool = False
    words: list[str] = field(default_factory=list)
    perhaps: int | None = None
    drawn: list[int] | Literal["random"] = "random"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("whole", "abc", "a whole number"),
        ("real", "abc", "a number"),
        ("choice", "abc", "true or false"),
        ("words", "abc", "a list of texts"),
        ("words", [3], "a list of texts"),
        ("perhaps", 1.5, "a whole number or null"),
        ("drawn", ["a"], "a list of whole numbers or random"),
    ],
)
def test_a_value_of_the_wrong_type_is_reported_in_words_and_not_as_a_class(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'config key {key!r}: expected {words}, got {value!r}')}$"):
        build(Types, {key: value})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": 2024}, "expected a text, got 2024; in quotes it is a text"),
        ({"name": "x", "seed": "9" * 999}, f"got '{'9' * 199}..."),
        ({"name": "x", "members": {"a\nb": 3}}, "config section members.a\\nb must be"),
        ({"name": "x", "members": {"a\nb": {}}}, "required: members.a\\nb.checkpoint"),
    ],
)
def test_a_message_is_short_one_line_and_has_the_mend(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        build(Config, tree)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("where", "key"), [("", "name"), ("model", "model.name")])
def test_a_missing_required_key_is_named(where: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"required: {re.escape(key)}$"):
        build(Config, {"seed": 1}, where)
