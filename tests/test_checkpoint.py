"""Weights on disk: round trips, damaged and foreign files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from undegrade.utils.checkpoint import file_digest, load_checkpoint, read_description, save_checkpoint

STATE = {"layer.weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7), "half": torch.ones(2, dtype=torch.bfloat16)}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])


def test_weights_and_description_come_back_as_they_were_saved(tmp_path: Path) -> None:
    description = {"kind": "classifier", "arch": "ResNet20", "classes": ["é", "b"], "mean": [0.1, 0.2, 0.3]}
    path = tmp_path / "deep" / "best.safetensors"
    save_checkpoint(path, STATE, description)
    state, found = load_checkpoint(path, kind="classifier")
    assert_same(state, STATE)
    assert found == description
    assert [p.name for p in path.parent.iterdir()] == ["best.safetensors"]  # no temporary file stays


def test_the_description_is_read_without_the_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", STATE, {"degradations": ["jpeg", "blur+noise"], "initial_weights": None})
    assert read_description(tmp_path / "a.safetensors") == {"degradations": ["jpeg", "blur+noise"], "initial_weights": None}


def test_a_foreign_file_has_no_description(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "theirs.pth")
    save_file(STATE, tmp_path / "theirs.safetensors")
    assert read_description(tmp_path / "theirs.pth") == read_description(tmp_path / "theirs.safetensors") == {}


def test_tensors_that_are_views_or_need_gradients_are_saved(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    save_checkpoint(tmp_path / "a.safetensors", {"w": weight, "t": torch.arange(6.0).view(2, 3).T}, {})
    assert_same(load_checkpoint(tmp_path / "a.safetensors")[0], {"w": weight.detach(), "t": torch.arange(6.0).view(2, 3).T})


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for value in (1.0, 2.0):
        save_checkpoint(path, {"w": torch.tensor([value])}, {"value": value})
    assert load_checkpoint(path)[0]["w"].item() == 2.0
    assert load_checkpoint(path)[1] == {"value": 2.0}


def test_the_file_is_as_readable_as_other_new_files(tmp_path: Path) -> None:
    """safetensors makes files that only their owner can read; colleagues on a cluster start from
    each other's runs.
    """
    umask = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a.safetensors", STATE, {})
    finally:
        os.umask(umask)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("length", [0, 5, 60, -3])
def test_a_truncated_file_is_reported_by_its_name(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.safetensors"
    save_checkpoint(path, STATE, {"kind": "classifier"})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read as safetensors \(truncated, or another format\?\)"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read as safetensors"):
        read_description(path)


def test_a_missing_file_is_reported_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors does not exist"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", STATE, {"kind": "diffusion"})
    with pytest.raises(ValueError, match=r"a\.safetensors holds a diffusion model, a classifier model is needed here"):
        load_checkpoint(tmp_path / "a.safetensors", kind="classifier")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_a_foreign_file_of_tensors_is_read_without_description(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    content = STATE if wrapper is None else {"epoch": 3, wrapper: STATE}
    torch.save(content, tmp_path / "theirs.pth", _use_new_zipfile_serialization=zipped)
    state, description = load_checkpoint(tmp_path / "theirs.pth", kind="classifier")
    assert_same(state, STATE)
    assert description == {}


def test_entries_that_are_no_tensors_are_left_out_of_a_foreign_file(tmp_path: Path) -> None:
    torch.save({**STATE, "epoch": 3, "note": "x"}, tmp_path / "theirs.pth")
    assert_same(load_checkpoint(tmp_path / "theirs.pth")[0], STATE)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("sprung",)


def test_a_file_of_python_objects_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "model": Trap()}, "theirs.pth")
    message = r"theirs\.pth cannot be read as a file of tensors \(holds \S*mkdir\).*save the state dict alone with the program"
    with pytest.raises(ValueError, match=message):
        load_checkpoint("theirs.pth")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_foreign_file_is_reported_by_its_name(tmp_path: Path, share: float, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read as a file of tensors \(\w+"):
        load_checkpoint(path)


def test_text_in_place_of_weights_is_reported(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth cannot be read as a file of tensors"):
        load_checkpoint(tmp_path / "page.pth")


def test_a_foreign_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list, a state dict \(tensors by name\) is needed"):
        load_checkpoint(tmp_path / "list.pth")


def test_the_digest_is_the_start_of_the_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea"  # FIPS 180-2, example B.1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path, kind: torch.dtype, value: float) -> None:
    state = {**STATE, "fc.bias": torch.tensor([1.0, value], dtype=kind)}
    with pytest.raises(ValueError, match=r"a\.safetensors is not written: fc\.bias holds NaN or infinite values"):
        save_checkpoint(tmp_path / "a.safetensors", state, {})
    assert not list(tmp_path.iterdir())
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    save_file(state, tmp_path / "b.safetensors")
    for name in ("b.pth", "b.safetensors"):
        with pytest.raises(ValueError, match=f"checkpoint {tmp_path}/{name}: fc.bias holds NaN or infinite values"):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ['{"kind": "classi', "5", "null", '["kind"]', '{"num_classes": "ten"}', '{"classes": "abc"}', '{"classes": [1, 2]}',
     '{"mean": [null, 0.5, 0.5]}', '{"kind": {}}', '{"unet": []}', "[" * 100_000],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_damaged_description_is_one_line_with_the_mend(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(STATE, path, metadata={"undegrade": text})
    for read in (load_checkpoint, read_description):
        with pytest.raises(ValueError, match=r"a\.safetensors: the description in it is damaged \(.*make the checkpoint anew$"):
            read(path)
