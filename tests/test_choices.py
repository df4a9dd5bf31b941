"""Names that are not known, and random streams by name."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from undegrade.utils.choices import check_choice, fill_names
from undegrade.utils.seeding import derive_seed, numpy_generator, seed_everything, torch_generator


def test_a_known_name_is_returned() -> None:
    assert check_choice("blur", ["jpeg", "blur"], "degradation") == "blur"


def test_an_unknown_name_is_reported_with_its_place_the_closest_and_all_names() -> None:
    expected = "unknown degradation 'nois' in section 'data': did you mean 'noise'? allowed: jpeg, noise, blur"
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_choice("nois", ["jpeg", "noise", "blur"], "degradation", "section 'data'")


def test_nothing_is_suggested_where_nothing_is_close() -> None:
    with pytest.raises(ValueError, match=r"^unknown degradation 'fog': allowed: jpeg, noise$"):
        check_choice("fog", ["jpeg", "noise"], "degradation")


def test_a_value_that_is_no_text_is_never_a_name() -> None:
    with pytest.raises(ValueError, match=r"unknown key 1: did you mean '1'\? allowed: 1, 2"):
        check_choice(1, ["1", "2"], "key")


def test_seeds_are_the_blake2b_digest_of_the_joined_parts() -> None:
    """From `printf '0\\x1fnoise\\x1f0.5\\x1f3/0003' | b2sum -l 64`: its bytes as a little-endian
    number, halved.
    """
    assert derive_seed(0, "noise", 0.5, "3/0003") == 3695178109805759801
    assert derive_seed("") == 6510301506637419378


def test_streams_differ_by_every_part_and_by_where_parts_end() -> None:
    names = [(0, "noise", "a"), (1, "noise", "a"), (0, "blur", "a"), (0, "noise", "b"), (0, "noisea"), (0, "nois", "ea")]
    assert len({derive_seed(*name) for name in names}) == len(names)
    assert all(0 <= derive_seed(*name) < 2**63 for name in names)


def test_generators_of_one_name_draw_the_same() -> None:
    assert np.array_equal(numpy_generator(1, "x").random(4), numpy_generator(1, "x").random(4))
    assert torch.equal(torch.rand(4, generator=torch_generator(1, "x")), torch.rand(4, generator=torch_generator(1, "x")))


def test_seeding_everything_repeats_python_numpy_and_torch() -> None:
    drawn = []
    for _ in range(2):
        seed_everything(2**40 + 5)  # numpy's global generator takes 32 bits only
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


# --- names in texts


def test_names_in_a_text_are_filled_and_double_braces_stand_for_braces() -> None:
    values = {"dataset": "Digits", "n": 3}
    assert fill_names("a/{dataset}/{n}/{{dataset}}", values, "here") == "a/Digits/3/{dataset}"
    assert fill_names("{dataset}/{deg}", values, "here", later=("deg",)) == "Digits/{deg}"
    assert fill_names("{dataset}", {"dataset": "{n}"}, "here") == "{n}"


def test_an_unknown_name_in_a_text_is_reported_with_the_closest() -> None:
    message = "unknown name 'datset' in stage 'a': did you mean 'dataset'? allowed: dataset, deg"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fill_names("{datset}", {"dataset": "x"}, "stage 'a'", later=("deg",))


@pytest.mark.parametrize("text", ["a{", "a}", "a{}", "{a b}", "{0}", "{a!r}", "{a:3}", "{a.b}"])
def test_a_brace_that_is_no_name_is_reported_with_the_mend(text: str) -> None:
    with pytest.raises(ValueError, match=f"^here: .*; write {{{{ and }}}} for braces that are no name: {re.escape(text)}$"):
        fill_names(text, {"a": "x"}, "here")
