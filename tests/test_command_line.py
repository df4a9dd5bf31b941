"""The errors of a command line: short, and with the mend."""

from __future__ import annotations

import pytest

from undegrade.utils.command_line import ScriptParser


@pytest.fixture
def parser() -> ScriptParser:
    parser = ScriptParser("a script", ["seed", "data.limit"])
    parser.add_argument("--corruption")
    parser.add_argument("--count", type=int)
    return parser


def test_a_list_of_several_words_is_refused_with_the_mend(parser: ScriptParser) -> None:
    with pytest.raises(ValueError, match=r"unexpected arguments \['snow', 'frost'\]: a list is one word, .* commas \(fog,snow\)"):
        parser.parse(["--corruption", "fog", "snow", "frost"])
    own, keys = parser.parse(["--corruption", "fog,snow", "--data.limit", "3"])
    assert own.corruption == "fog,snow"
    assert keys == {"data": {"limit": 3}}


def test_a_key_without_value_takes_no_flag_for_it(parser: ScriptParser) -> None:
    parser.add_argument("-r", "--resume")
    with pytest.raises(ValueError, match=r"option --data\.limit has no value"):
        parser.parse(["--data.limit", "-r", "runs/x"])
    assert parser.parse(["--data.limit", "-3"])[1] == {"data": {"limit": -3}}


@pytest.mark.parametrize(
    ("keys", "forms"),
    [
        (["seed", "data.limit"], "--key value or --section.key value"),
        (["data.limit"], "--section.key value"),
        (["seed"], "--key value"),
        ([], None),
    ],
)
def test_help_speaks_of_configuration_keys_where_there_are_any(keys: list[str], forms: str | None) -> None:
    text = " ".join(ScriptParser("a script", keys).format_help().split())
    assert text.endswith("Any configuration key may be given too: " + forms) if forms else "configuration key" not in text


@pytest.mark.parametrize(
    ("words", "message"), [(["--count", "x"], "--count: invalid int value: 'x'"), (["--count"], "expected one argument")]
)
def test_an_unusable_value_ends_with_one_line_and_not_with_pages_of_flags(
    words: list[str], message: str, parser: ScriptParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "--help" in error
