"""YAML as text of configurations: what it means, and what is refused in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from undegrade.utils.config import dump_yaml, parse_value, read_yaml

# each mapping holds the one before nine times: the last comes to 9^12 texts
LAUGHS = "\n".join(["a0: &a0 [lol]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 13))])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("-2E5", -2e5), ("1.5e3", 1500.0), (".5e1", 5.0), ("0.1", 0.1), ("7", 7), ("1_000", 1000), ("true", True),
        ("null", None), ("[jpeg, blur]", ["jpeg", "blur"]), ("[1e-3]", [1e-3]), ("{a: 1}", {"a": 1}), ("runs/a b", "runs/a b"),
        ("1e", "1e"), ("[open", "[open"), ("@x", "@x"), ("010", "010"), ("1:30", "1:30"), ("no", "no"), ("0x1f", "0x1f"),
        ("2024-01-01", "2024-01-01"), ("9" * 5000, "9" * 5000), ("[" * 900 + "]" * 900, "[" * 900 + "]" * 900),
    ],
)  # fmt: skip
def test_a_value_on_the_command_line_means_what_it_means_in_yaml(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["1e-3", "1E5", "010", "1:30", "no", "Yes", "true", "null", "~", "2024-01-01", ".inf", "7", "a: b"]
)
def test_a_text_that_looks_like_something_else_is_read_back_as_the_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "top.yaml").write_text(dump_yaml({"key": text}))
    assert read_yaml(tmp_path / "top.yaml") == {"key": text}


def test_anchors_and_merged_mappings_are_read(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert read_yaml(tmp_path / "top.yaml")["b"] == {"x": 3, "y": 2}


def test_a_file_of_remarks_is_an_empty_configuration(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text("# only a comment\n")
    assert read_yaml(tmp_path / "top.yaml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer:\n  lr: 1\n  name: SGD\n  lr: 2\n", "is not valid YAML, line 4, column 3: key given twice: lr"),
        ("{a: 1, 1: 2, true: 3}", "line 1, column 14: key given twice: True"),
        ("a: 1\nb: [1, 2\n\n", "line 4, column 1 (of what begins in line 2): did not find expected ',' or ']'"),
        ("a:\n\tb: 1\n", "line 2, column 1: found character that cannot start any token; indent with spaces, not tabs"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("a: 1\n---\nb: 2\n", "expected a single document in the stream, but found another document"),
        ("a: *b", "found undefined alias"),
        ("a: !!python/object/apply:os.getcwd []", "line 1, column 4: could not determine a constructor for the tag"),
        ("a: !!timestamp 2024-01-01", "datetime.date(2024, 1, 1) is a date: write it as text, in quotes"),
        ("a: !!bool maybe", "a value does not fit its tag (KeyError('maybe')): leave the tag, such as !!int, out"),
        ("a: " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        (LAUGHS, "it comes to more than 50 levels or 100,000 values, aliases (*name) counted each time"),
        ("a: &a [*a]", "more than 50 levels"),
        ("- " * 20_000 + "x", "exceeded maximum nesting depth"),
        ("- " * 500 + "x", "more than 50 levels"),
        ("- a\n- b\n", "expected `key: value` lines at the top level, found a list"),
        ("", "is empty: write `key: value` lines into it, or restore it from a copy"),
        (b"a: 1\nb: \xe9\n", ", line 2 is no text in UTF-8 (invalid continuation byte): save the file in that encoding"),
        (b"a: \x00", "control characters are not allowed (place 3); take them out"),
    ],
)  # fmt: skip
def test_a_damaged_or_hostile_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "top.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_without_the_reader_in_c_deep_files_are_refused_as_well(tmp_path: Path) -> None:
    code = """
import sys, yaml
del yaml.CSafeLoader
from undegrade.utils.yaml_trees import parse_value
assert parse_value("[1e-3, 010]") == [1e-3, "010"] and isinstance(parse_value("[" * 5000), str)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
