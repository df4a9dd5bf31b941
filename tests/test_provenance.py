"""Where a result came from: commit, library versions, digests of listings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import PIL
import timm
import torch

from undegrade.utils import provenance as provenance_module
from undegrade.utils.provenance import library_versions, listing_digest


def test_provenance_gives_the_commit_of_tracked_code_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    file, stranger = tmp_path / "code.py", tmp_path / "stranger.py"
    file.write_text("a = 1\n")
    stranger.write_text("b = 1\n")
    assert provenance_module.git_state(file) == (None, None)
    git("init", "-q")
    git("add", "code.py")
    assert provenance_module.git_state(file) == (None, None)  # no commit yet
    git("commit", "-q", "-m", "first")
    commit, dirty = provenance_module.git_state(file)
    assert commit is not None and len(commit) == 40 and dirty is False
    file.write_text("a = 2\n")
    assert provenance_module.git_state(file) == (commit, True)
    assert provenance_module.git_state(stranger) == (None, None)


def test_provenance_names_no_person_host_or_path() -> None:
    facts = provenance_module.provenance()
    assert list(facts) == ["commit", "dirty", "python", "libraries", "system", "cpu", "cores", "gpu"]
    assert isinstance(facts["cores"], int) and facts["cores"] >= 1 and facts["cpu"]
    assert not any(str(Path.cwd()) in str(value) for value in facts.values())


def test_library_versions_are_those_of_what_is_imported() -> None:
    versions = library_versions()
    assert (versions["numpy"], versions["timm"], versions["pillow"]) == (np.__version__, timm.__version__, PIL.__version__)
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_listing_is_named_by_its_keys_labels_and_their_order_and_by_nothing_else() -> None:
    digest = listing_digest(["a/1", "b/2"], [0, 1])
    assert digest == listing_digest(("a/1", "b/2"), torch.tensor([0, 1])) == listing_digest(["a/1", "b/2"], np.array([0, 1]))
    others = [
        (["b/2", "a/1"], [1, 0]),
        (["a/1", "b/2"], [0, 0]),
        (["a/1"], [0]),
        (["a/1,b/2"], [0, 1]),
        (["a/1", "b/2\udce9"], [0, 1]),
    ]
    assert len({digest, *(listing_digest(keys, labels) for keys, labels in others)}) == 6
