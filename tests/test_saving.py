"""Systems and classifiers in folders and on the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import undegrade
from tests.api import CLASSIFIERS, DENOISER, demo_runs
from tests.checkpoints import finished_run, save_random
from tests.test_api import DDA, ENSEMBLE, gated, images, network
from undegrade.evaluation.result_files import write_json
from undegrade.evaluation.results import Result
from undegrade.models.classification.classifier import Classifier, build_classifier
from undegrade.models.classification.saved import crop_share
from undegrade.models.diffusion.loading import open_denoiser, save_folder
from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.utils.runs import find_checkpoint

TINY = "test_resnet"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return demo_runs(tmp_path / "runs")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def scores(system: undegrade.System) -> torch.Tensor:
    return torch.cat(list(system.scores(images(5))))


# --- systems


def test_an_ensemble_says_the_same_to_the_bit_after_its_runs_are_gone(runs: Path, tmp_path: Path) -> None:
    system = undegrade.load(ENSEMBLE, runs=runs)
    expected, folder = scores(system), tmp_path / "saved"
    system.save_pretrained(folder)
    shutil.rmtree(runs)
    for loaded in (undegrade.load(folder), undegrade.System.from_pretrained(folder)):
        assert torch.equal(scores(loaded), expected) and repr(loaded) == repr(system)
    assert [*bytes_of(folder)] == [
        "README.md", "adapters/1-adapted/adapter.yaml", "adapters/1-adapted/model.safetensors", "config.json",
        "members/1-degraded/config.json", "members/1-degraded/model.safetensors",
        "members/2-adapted/config.json", "members/2-adapted/model.safetensors",
    ]  # fmt: skip
    undegrade.load(folder).save_pretrained(tmp_path / "again")
    assert bytes_of(folder) == bytes_of(tmp_path / "again")
    alone = undegrade.load(folder / "members/1-degraded")
    assert alone.predict(images()) and alone.classes == system.classes


def test_a_model_of_diffusers_is_copied_with_its_scheduler(runs: Path, tmp_path: Path) -> None:
    model = tmp_path / "ddpm"
    save_folder(open_denoiser(find_checkpoint(DENOISER, runs), {}), model)
    (tmp_path / "dda.yaml").write_text(f"adapter: dda\nmodel: {model}\ndda: {{respacing: 10, start_step: 2}}\n")
    system = undegrade.load(CLASSIFIERS[0], runs=runs, adapter=tmp_path / "dda.yaml")
    system.save_pretrained(tmp_path / "saved")
    shutil.rmtree(model)
    assert torch.equal(scores(undegrade.load(tmp_path / "saved")), scores(system))
    assert (tmp_path / "saved/adapters/1-adapted/unet/denoiser.json").is_file()


def test_a_published_model_is_referred_to_and_must_be_the_same(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDEGRADE_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    torch.save(FFDNet(4, 2).state_dict(), tmp_path / "weights/ffdnet_color.pth")
    (tmp_path / "a.yaml").write_text("adapter: restoration\nmodel: ffdnet_color\n")
    system = undegrade.load(CLASSIFIERS[0], runs=runs, adapter=tmp_path / "a.yaml")
    system.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved/adapters").rglob("*.safetensors"))
    assert torch.equal(scores(undegrade.load(tmp_path / "saved")), scores(system))
    torch.save(FFDNet(4, 2).state_dict(), tmp_path / "weights/ffdnet_color.pth")
    with pytest.raises(ValueError, match=r"adapter of view 'adapted' is another one than .* \(differs in model\)"):
        undegrade.load(tmp_path / "saved")
    (tmp_path / "weights/ffdnet_color.pth").unlink()
    with pytest.raises(FileNotFoundError, match="download with: undegrade download ffdnet_color"):
        undegrade.load(tmp_path / "saved")


def test_a_restorer_out_of_a_pickle_is_saved_without_one(runs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(FFDNet(4, 2).state_dict(), tmp_path / "own.pth")
    (tmp_path / "a.yaml").write_text(f"adapter: restoration\nmodel: {tmp_path}/own.pth\n")
    system = undegrade.load(CLASSIFIERS[0], runs=runs, adapter=tmp_path / "a.yaml")
    system.save_pretrained(tmp_path / "saved")
    assert torch.equal(scores(undegrade.load(tmp_path / "saved")), scores(system))
    assert {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()} == {".json", ".md", ".yaml", ".safetensors"}


def test_a_gate_is_saved_with_its_numbers(runs: Path, tmp_path: Path) -> None:
    system = gated(runs, tmp_path, threshold=-4.0)
    system.save_pretrained(tmp_path / "saved")
    flat = torch.cat([torch.full((1, 3, 32, 32), 90, dtype=torch.uint8), images(1)])
    loaded = undegrade.load(tmp_path / "saved")
    assert loaded.predict(flat) == system.predict(flat) and [one.way for one in loaded.predict(flat)] == ["raw", "adapted"]


@pytest.mark.parametrize("given", [True, False])
def test_classifiers_that_adapt_themselves_start_anew(given: bool, runs: Path, tmp_path: Path) -> None:
    tent = {"name": "tent", "lr": 0.01}
    system = undegrade.load(CLASSIFIERS[0], runs=runs, overrides={"members": {"model": {"predictor": tent}}} if given else None)
    system = system if given else system.with_tta("tent", lr=0.01)
    first = scores(system)
    system.save_pretrained(tmp_path / "saved")
    loaded = undegrade.load(tmp_path / "saved")
    assert torch.equal(scores(loaded), first) and not torch.equal(scores(loaded), first)
    assert "depends on the other images" in (tmp_path / "saved/README.md").read_text()


def test_a_network_of_timm_keeps_its_classes_and_frame(tmp_path: Path) -> None:
    system = undegrade.wrap(TINY, pretrained=False, classes=None)
    system.save_pretrained(tmp_path / "saved")
    loaded = undegrade.load(tmp_path / "saved")
    assert (loaded.classes, loaded.image_size, loaded.resize) == (system.classes, system.image_size, system.resize)
    photos = torch.randint(0, 256, (2, 3, 200, 180), dtype=torch.uint8)
    assert loaded.predict(photos) == system.predict(photos)


def test_what_cannot_be_saved_or_loaded_says_why(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Sequential has no name by which it could be built again"):
        undegrade.wrap(network(), image_size=32).save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists(), "all of it or nothing"
    system = undegrade.load(CLASSIFIERS[0], runs=runs)
    with pytest.raises(ValueError, match="holds something already"):
        system.save_pretrained(runs)
    system.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="is a saved system.*leave adapter= out"):
        undegrade.load(tmp_path / "saved", adapter=DDA)
    config = tmp_path / "saved/config.json"
    config.write_text(config.read_text().replace('"image_size": 32', '"image_size": "32"'))
    with pytest.raises(ValueError, match=r"config.json is damaged.*image_size"):
        undegrade.load(tmp_path / "saved")


# --- classifiers


def test_timm_loads_what_is_saved_and_saving_it_again_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = build_classifier(TINY, 3, (0.4, 0.5, 0.6), (0.2, 0.21, 0.22)).eval()
    own.about = {"classes": ["a", "b", "c"], "image_size": 64, "resize": 73, "interpolation": "bicubic"}
    own.save_pretrained(tmp_path / "a")
    again = Classifier.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs(own.normalise(x)), own(x)) and torch.equal(again(x), own(x))
    data = timm.data.resolve_model_data_config(theirs)
    assert list(data["input_size"]) == [3, 64, 64] and data["mean"] == [0.4, 0.5, 0.6] and int(64 / data["crop_pct"]) == 73
    assert theirs.pretrained_cfg["label_names"] == ["a", "b", "c"] and "license" not in theirs.pretrained_cfg


@pytest.mark.parametrize(("side", "resize"), [(224, 256), (64, 73), (176, 224), (32, 32), (288, 303)])
def test_timm_works_out_the_shorter_side(side: int, resize: int) -> None:
    assert int(side // crop_share(side, resize)) == resize


def test_our_own_networks_have_a_folder_of_their_own(tmp_path: Path) -> None:
    own = build_classifier("ResNet20", 3, (0.5,) * 3, (0.25,) * 3).eval()
    own.save_pretrained(tmp_path / "a")
    loaded = Classifier.from_pretrained(tmp_path / "a")
    assert torch.equal(loaded(torch.ones(1, 3, 32, 32)), own(torch.ones(1, 3, 32, 32)))
    assert json.loads((tmp_path / "a/config.json").read_text())["undegrade"]["architecture"] == "ResNet20"
    own.restrict([0, 2])
    with pytest.raises(ValueError, match="answers with 2 of its 3 classes: save the whole system"):
        own.save_pretrained(tmp_path / "b")


# --- the Hub, and the card


class Api:
    """The Hub, as far as publishing needs it."""

    published: dict[str, dict[str, bytes]] = {}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        self.options = options

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.published[repo_id] = bytes_of(Path(folder_path))
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_what_is_published_is_what_is_saved(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    system = undegrade.load(CLASSIFIERS[0], runs=runs)
    assert system.push_to_hub("me/digits", private=True).endswith("me/digits/commit/1")
    system.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/second", model_card_kwargs={"licence": "mit"})
    for repo in ("me/digits", "me/second"):
        files = dict(Api.published[repo])
        card = files.pop("README.md").decode()
        assert f'from_pretrained("{repo}")' in card
        assert files == {name: data for name, data in bytes_of(tmp_path / "saved").items() if name != "README.md"}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(tmp_path / "saved"))
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **options: str(tmp_path / "saved/config.json"))
    assert torch.equal(scores(undegrade.System.from_pretrained("me/second")), scores(system))


def results_of(system: undegrade.System, path: Path, **changes: Any) -> Path:
    rows = [
        Result("Best", "Digits", c, s, "first", 40, k, k / 40, k / 40 - 0.1, k / 40 + 0.1)
        for c, s, k in (("clean", 0, 38), ("fog", 5, 21))
    ]
    members = {name: origin.digest for name, origin in system.origins.items()}
    meta = {
        "systems": {"Best": {"members": [*members], "rule": "first", "double_softmax": False}}, "members": members,
        "views": dict.fromkeys(members, "raw"), "images": 40, "split": "test", "configuration": {"runs": "/home/me/runs"},
        "provenance": [{"commit": "0123456789abc", "cpu": "a processor", "libraries": {"torch": "2.14.1"}}], **changes,
    }  # fmt: skip
    write_json(path, rows, meta)
    return path


def test_a_card_has_the_measured_figures_and_no_others(runs: Path, tmp_path: Path) -> None:
    checkpoint = finished_run(
        tmp_path / "runs", "mine", image_size=32, degradations=["jpeg"], epoch=3,
        configuration={"data": {"dataset": "Digits"}, "method": {"name": "supervised"}, "loop": {"epochs": 4}, "seed": 1},
    )  # fmt: skip
    system = undegrade.load(checkpoint)
    results = results_of(system, tmp_path / "results.json")
    system.save_pretrained(
        tmp_path / "a", model_card_kwargs={"results": results, "licence": "mit", "command": "undegrade export mine"}
    )
    card = ModelCard.load(tmp_path / "a/README.md")
    found = {result.dataset_config: result.metric_value for result in card.data.eval_results}
    assert found == {"clean 0": 0.95, "fog 5": 0.525} and card.data.license == "mit" and card.data.library_name == "undegrade"
    assert (
        "| fog | 5 | 40 | 52.5 | 42.5 to 62.5 |" in card.text and "40 test images a row; code 0123456789, a processor" in card.text
    )
    assert "trained on Digits (jpeg); method supervised; 4 epochs, of which number 3 was best" in card.text
    assert "undegrade export mine" in card.text and "/home/me" not in card.text
    system.save_pretrained(tmp_path / "b")
    plain = ModelCard.load(tmp_path / "b/README.md")
    assert "no accuracy is claimed" in plain.text and plain.data.eval_results is None and "not stated" in plain.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": {"model": "0" * 16}}, "was evaluated with other checkpoints or predictors"),
        ({"systems": {"Best": {"members": ["model"], "rule": "sum"}}}, "was evaluated with the rule sum, the system has first"),
        ({"views": {"model": "adapted/dda"}}, "looked at adapted/dda, 'model' of .* at raw"),
    ],
)
def test_figures_of_another_system_are_refused(runs: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    system = undegrade.load(CLASSIFIERS[0], runs=runs)
    results = results_of(system, tmp_path / "results.json", **changes)
    with pytest.raises(ValueError, match=words):
        system.generate_model_card(results=results, row="Best")


def test_the_adapter_of_the_figures_is_that_of_the_system(runs: Path, tmp_path: Path) -> None:
    system = undegrade.load(CLASSIFIERS[0], runs=runs, adapter="median_filter")
    names = [*system.origins]
    best = {"Best": {"members": names, "rule": "sum"}}
    views = {names[0]: "raw", names[1]: "out/adapted"}
    results = results_of(system, tmp_path / "results.json", systems=best, views=views, configuration={"out": "out"})
    unchecked = "that this adapter made them was not checked"
    assert unchecked in system.generate_model_card(results=results, row="Best").text
    settings = tmp_path / "adapted/fog/5/settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({**system.adapters["adapted"].facts, "seed": 0, "corruption": "fog"}))
    assert unchecked not in system.generate_model_card(results=results, row="Best").text
    settings.write_text(json.dumps({"adapter": "dda"}))
    with pytest.raises(ValueError, match="the images in out/adapted were adapted by another adapter than that of"):
        system.generate_model_card(results=results, row="Best")


def test_a_file_of_another_program_can_be_saved(tmp_path: Path) -> None:
    save_random(tmp_path / "tiny.safetensors", arch=TINY, classes=("x", "y"))
    torch.save(Classifier.from_pretrained(_folder_of(tmp_path)).network.state_dict(), tmp_path / "foreign.pth")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    system = undegrade.load(tmp_path / "foreign.pth", arch=TINY, classes=str(tmp_path / "classes.txt"))
    system.save_pretrained(tmp_path / "saved")
    assert undegrade.load(tmp_path / "saved").classes == ["x", "y"]


def _folder_of(root: Path) -> Path:
    (root / "folder").mkdir()
    shutil.copyfile(root / "tiny.safetensors", root / "folder/model.safetensors")
    return root / "folder"
