"""`undegrade export`: programs of torch.export and ONNX, folders of timm and of whole systems."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard

import undegrade
from tests.api import CLASSIFIERS, demo_runs
from tests.checkpoints import finished_run
from tests.scripts import Done, launch, run_script
from tests.test_api import ENSEMBLE, gated, images
from tests.test_saving import results_of
from undegrade.export_command import push
from undegrade.exporting import export_program
from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.models.restoration.restorer import nafnet
from undegrade.one_pass import OnePass
from undegrade.utils.checkpoint import save_checkpoint

SCRIPT = "undegrade/export_command.py"
TINY = "test_resnet"


def export(*words: object) -> Done:
    return run_script(SCRIPT, *words)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's runs, two small networks of timm, and a YAML of both with a restorer."""
    root = tmp_path_factory.mktemp("runs")
    demo_runs(root)
    for seed, name in enumerate(("one", "two")):
        finished_run(root, name, seed=seed, arch=TINY, image_size=32)
    torch.manual_seed(0)
    save_checkpoint(root / "restorer.safetensors", FFDNet(4, 2).state_dict(), {"kind": "restorer"})
    (root / "restore.yaml").write_text(f"adapter: restoration\nmodel: {root}/restorer.safetensors\n")
    (root / "both.yaml").write_text(
        "members: {raw: {checkpoint: one}, restored: {checkpoint: two, view: adapted}}\n"
        "systems: {both: {members: [raw, restored], rule: sum}}\nviews: {adapted: somewhere}\n"
    )
    return root


@pytest.fixture(scope="module")
def both(root: Path) -> undegrade.System:
    return undegrade.load(root / "both.yaml", runs=root, adapter=root / "restore.yaml", device="cpu")


def probabilities(system: undegrade.System, x: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(system.scores(x, framed=True))).float()


# --- programs


def test_onnx_of_a_system_of_one_pass_says_what_the_system_says(root: Path, both: undegrade.System, tmp_path: Path) -> None:
    words = ("--runs", root, "--adapter", root / "restore.yaml", "--out", tmp_path / "made", "--format", "onnx")
    done = export(root / "both.yaml", *words).check()
    assert done.out.strip() == str(tmp_path / "made") and "largest difference from the system itself:" in done.err
    session = onnxruntime.InferenceSession(tmp_path / "made/model.onnx")
    for count in (1, 7):
        (found,) = session.run(None, {"images": images(count).numpy()})
        np.testing.assert_allclose(found, probabilities(both, images(count)).numpy(), atol=1e-5)
    told = json.loads((tmp_path / "made/metadata.json").read_text())
    assert told["input"] == {
        "name": "images",
        "shape": ["batch", 3, 32, 32],
        "dtype": "uint8",
        "range": "0 to 255",
        "channels": "RGB",
    }
    assert told["output"]["shape"] == ["batch", 10] and told["max_difference"] < 1e-5 and len(told["classes"]) == 10
    inside = json.loads(session.get_modelmeta().custom_metadata_map["undegrade"])
    assert inside["inside"].startswith("scale and normalisation of the images, restoration of the cut image")
    assert ModelCard.load(tmp_path / "made/README.md").data.library_name == "onnx"


def test_onnx_of_a_classifier_takes_images_of_unit_range(root: Path, tmp_path: Path) -> None:
    export("one", "--runs", root, "--out", tmp_path / "made", "--format", "onnx", "--pixels", "float32").check()
    session = onnxruntime.InferenceSession(tmp_path / "made/model.onnx")
    (found,) = session.run(None, {"images": images(3).numpy().astype(np.float32) / 255})
    system = undegrade.load("one", runs=root, device="cpu")
    np.testing.assert_allclose(found, probabilities(system, images(3)).numpy(), atol=1e-5)


def test_a_program_of_torch_says_the_same_in_any_batch(root: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "naf.safetensors", nafnet(4, [1]).network.state_dict(), {"kind": "restorer"})
    (tmp_path / "naf.yaml").write_text(f"adapter: restoration\nmodel: {tmp_path}/naf.safetensors\n")
    system = undegrade.load("one", runs=root, adapter=tmp_path / "naf.yaml", device="cpu")
    told = export_program(system, tmp_path, "torch")
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    for count in (1, 9):
        assert torch.allclose(program(images(count)), probabilities(system, images(count)), atol=1e-6)
    assert told["max_difference"] <= 1e-6 and json.loads(extra["metadata.json"])["classes"] == system.classes


def test_a_module_is_the_system_for_every_rule_and_for_a_gate(root: Path, both: undegrade.System, tmp_path: Path) -> None:
    x = images(4)
    with torch.no_grad():
        for rule in ("first", "second", "entropy", "var", "vote", "confidence_sum"):
            config = argparse.Namespace(**{**vars(both.rule), "rule": rule})
            system = undegrade.System("both", both.classes, config, both.members, both.views, both.adapters, 32)  # type: ignore[arg-type]
            assert torch.allclose(OnePass(system)(x), probabilities(system, x), atol=1e-6), rule
        system = gated(root, tmp_path, threshold=-4.0, adapter=str(root / "restore.yaml"))
        flat = torch.cat([torch.full((1, 3, 32, 32), 90, dtype=torch.uint8), x])
        assert [one.way for one in system.predict(flat)][:2] == ["raw", "adapted"]
        assert torch.allclose(
            OnePass(system)(flat), probabilities(system, flat), atol=1e-3
        )  # a grey level may be rounded otherwise


def test_what_is_not_one_pass_says_why_and_what_is(root: Path, tmp_path: Path) -> None:
    (tmp_path / "dda.yaml").write_text("adapter: dda\nmodel: diffusion/Digits/ddpm\ndda: {respacing: 10, start_step: 2}\n")
    chain = undegrade.load("one", runs=root, adapter=tmp_path / "dda.yaml", device="cpu")
    with pytest.raises(
        ValueError, match=r"adapter dda of view 'adapted' asks a network 4 times.*draws noise; export its classifiers"
    ):
        OnePass(chain)
    with pytest.raises(ValueError, match="adapter median_filter of view 'adapted' is no network"):
        OnePass(undegrade.load("one", runs=root, adapter="median_filter", device="cpu"))
    with pytest.raises(ValueError, match="its member 'model' adapts itself to the images"):
        OnePass(undegrade.load("one", runs=root, device="cpu").with_tta("tent"))
    with pytest.raises(ValueError, match="adapter median_filter of view"):
        OnePass(gated(root, tmp_path, -4.0))


def test_a_missing_package_is_named_with_its_extra(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else SimpleNamespace())
    done = export("one", "--runs", root, "--out", tmp_path / "made", "--format", "onnx")
    assert done.status == 2 and "error: --format onnx needs onnxscript: pip install 'undegrade[onnx]'" in done.err
    assert not (tmp_path / "made").exists()


# --- folders


def test_a_run_becomes_a_folder_of_timm(root: Path, tmp_path: Path) -> None:
    export("one", "--runs", root, "--out", tmp_path / "made", "--format", "timm", "--licence", "mit").check()
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard.load(tmp_path / "made/README.md")
    assert (card.data.library_name, card.data.license) == ("timm", "mit") and "local-dir:path/to/this/folder" in card.text
    export(tmp_path / "made", "--out", tmp_path / "again", "--format", "timm").check()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    done = export(CLASSIFIERS[0], "--runs", root, "--out", tmp_path / "own", "--format", "timm").check()
    assert "timm has no ResNet20" in done.err and undegrade.load(tmp_path / "own").predict(images(1))


def test_a_system_becomes_a_folder_with_its_results(root: Path, tmp_path: Path) -> None:
    results = results_of(undegrade.load("one", runs=root), tmp_path / "results.json")
    export("one", "--runs", root, "--out", tmp_path / "made", "--results", results).check()
    card = ModelCard.load(tmp_path / "made/README.md")
    assert [result.metric_value for result in card.data.eval_results] == [0.95, 0.525]
    assert "undegrade export one --runs" in card.text and str(tmp_path) not in card.text
    assert undegrade.load(tmp_path / "made").predict(images(1)) == undegrade.load("one", runs=root).predict(images(1))


def test_a_plan_opens_nothing_and_needs_no_large_library(root: Path, tmp_path: Path) -> None:
    words = ("-m", "undegrade", "export", root / "both.yaml", "--runs", root, "--adapter", root / "restore.yaml")
    done = launch(_python(), "-X", "importtime", *words, "--out", tmp_path / "made", "--format", "onnx", "--dry_run").check()
    assert "torch._C" not in done.err and not (tmp_path / "made").exists()
    lines = done.out.splitlines()
    assert lines[0] == "system: both, rule sum" and lines[1].startswith(f"member raw: {TINY}, 10 classes, looks at raw, frozen: ")
    assert lines[3] == f"adapter of adapted: restoration, model {root}/restorer.safetensors"
    assert lines[4] == f"format onnx, to {tmp_path}/made: model.onnx, metadata.json, README.md"
    saved = export("one", "--runs", root, "--out", tmp_path / "saved").check().out.strip()
    assert export(saved, "--out", tmp_path / "again", "--dry_run").check().out.startswith(f"system: the folder {saved}, as it is")


def _python() -> str:
    import sys

    return sys.executable


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("one", "--format", "onx"), "unknown format 'onx' in --format: did you mean 'onnx'?"),
        (("one", "--pixels", "uint8"), "--pixels uint8 has no effect here: --format hub holds networks"),
        (("one", "--row", "x"), "--row x names a row of --results, which is not given"),
        (("one", "--private"), "--private is for --push OWNER/NAME"),
        (("one", "--results", "nowhere.json"), "results nowhere.json do not exist"),
        (("one", "--lience", "mit"), "unknown option '--lience': did you mean '--licence'?"),
        (("one", "--data.limit", "3"), "this command has flags only"),
        ((ENSEMBLE, "--format", "timm"), "DiffAUD has 2 members, timm's format holds one classifier"),
        (
            (ENSEMBLE, "--format", "torch", "--dry_run"),
            "the adapter dda is not one pass of a network: torch programs hold restoration",
        ),
        (("nothing", "--dry_run"), "no checkpoint 'nothing'"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], said: str, root: Path, tmp_path: Path) -> None:
    done = export(*words, "--runs", root, "--out", tmp_path / "made")
    assert done.status == 2 and said in done.err and not (tmp_path / "made").exists(), done.err


def test_publishing_uploads_the_folder_and_keeps_it_where_that_fails(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Hub:
        def create_repo(self, **options: Any) -> SimpleNamespace:
            calls.append(options)
            return SimpleNamespace(repo_id=options["repo_id"])

        def upload_folder(self, **options: Any) -> str:
            calls.append(sorted(path.name for path in Path(options["folder_path"]).iterdir()))
            return "https://huggingface.co/me/one/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    done = export("one", "--runs", root, "--out", tmp_path / "made", "--format", "timm", "--push", "me/one", "--private").check()
    assert done.out.splitlines() == [str(tmp_path / "made"), "https://huggingface.co/me/one/commit/1"]
    assert calls == [{"repo_id": "me/one", "private": True, "exist_ok": True}, ["README.md", "config.json", "model.safetensors"]]
    assert 'create_model("hf-hub:me/one"' in (tmp_path / "made/README.md").read_text()
    monkeypatch.setattr(Hub, "create_repo", lambda self, **options: (_ for _ in ()).throw(OSError("401 Client Error")))
    with pytest.raises(ValueError, match=r"made is complete, but me/one was not published \(401 Client Error\); `hf auth login`"):
        push(tmp_path / "made", "me/one", False)
