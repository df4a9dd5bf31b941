"""Every key that an adaptation accepts has an effect, or is refused with what to use; so have the
variables and arguments of pipelines, and the keys of soups and of generation.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapting import generators, random_images, tiny_denoiser
from tests.editing import tiny_editor
from tests.scripts import run_script
from tests.stages import STAGE
from tests.test_consistency import distilled
from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.adapters import ADAPTERS
from undegrade.image_adapt.classical import CLASSICAL
from undegrade.image_adapt.dda import DDA
from undegrade.image_adapt.decorruptor import Decorruptor
from undegrade.image_adapt.ilvr import ILVR
from undegrade.image_adapt.restoration import Restoration
from undegrade.image_adapt.scripts.image_sample import parse
from undegrade.models.restoration.ffdnet import FFDNet
from undegrade.models.restoration.restorer import Restorer
from undegrade.trainers.soups import SoupConfig, check_keys
from undegrade.utils.config import build, merge
from undegrade.utils.pipeline import main

MODEL = "--model_path m --save_dir o"
FOG = f"{MODEL} --corruption fog"
PHOTOS = f"{MODEL} --base_samples photos"
TREE = f"{PHOTOS} --dataset imagenetc --corruption fog"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{FOG} --guidance_weight 0 --D 8", "dda.downscale_factor has no effect here: guidance_weight is 0"),
        (f"{FOG} --scale 0 --dda.guidance jacobian_free", "dda.guidance has no effect here: guidance_weight is 0"),
        (f"{FOG} --D 1 --border zero", "dda.border has no effect here: downscale_factor 1 keeps all of the image"),
        (
            f"{FOG} --adapter ilvr --N 4 --range_t 3 --D 4",
            "ilvr.downscale_factor has no effect here: range_t 3 leaves all steps free",
        ),
        (
            f"{FOG} --ilvr.downscale_factor 4",
            "ilvr.downscale_factor is an option of the adapter ilvr, dda is used here: leave it out",
        ),
        (f"{MODEL} --corruption blur,noise --severity 3", "input.severities has no effect here: blur, noise has no severities"),
        (f"{MODEL} --corruption clean --input.seed 3", "input.seed has no effect here: clean images have nothing that is drawn"),
        (
            f"{MODEL} --corruption blur --input.constants cifar",
            "input.constants has no effect here: it is not for blur, leave it out",
        ),
        (f"{FOG} --input.compat.salt_value 1", "input.compat.salt_value has no effect here: it is not for fog, leave it out"),
        (f"{FOG} --input.root x", "input.root has no effect here: Digits come with scikit-learn"),
        (f"{FOG} --train false", "input.train has no effect here: it is about the folders of --base_samples, see --split"),
        (
            f"{FOG} --input.layout imagenetc",
            "input.layout has no effect here: it is about the folders of --base_samples, see --split",
        ),
        (f"{PHOTOS} --split train", "input.split has no effect here: the images are those in photos, as they are"),
        (f"{PHOTOS} --input.seed 3", "input.seed has no effect here: the images are those in photos, as they are"),
        (f"{PHOTOS} --input.image_size 3", "input.image_size has no effect here: the images are those in photos, as they are"),
        (f"{PHOTOS} --input.subset x", "input.subset has no effect here: use --list"),
        (f"{PHOTOS} --severity 3", "input.severities has no effect here: a folder of images has no severities"),
        (
            f"{PHOTOS} --dataset imagenet --corruption fog --severity 3",
            "input.severities has no effect here: the layout imagenet has a folder for a corruption",
        ),
    ],
)
def test_a_key_without_effect_is_refused_with_the_reason(words: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse(shlex.split(words))
    assert str(raised.value) == f"--{message}"


@pytest.mark.parametrize(
    "words",
    [
        f"{FOG} --severity random --input.seed 3 --input.constants cifar --guidance jacobian_free --D 8 --border zero",
        f"{FOG},blur --severity 3 --input.compat.rounding truncate --split train --overwrite true",
        f"{FOG} --adapter ilvr --N 4 --range_t 2 --D 4 --border zero --reference_mismatch true",
        f"{FOG} --adapter ilvr --noise_level 0.1 --D 4",
        f"{TREE} --severity 3 --train True --input.limit 3",
        f"{PHOTOS} --split train --save_dir out/{{split}}",
        "-c configs/adapt/Digits/dda.yaml configs/_compat/dda.yaml --corruption blur",  # what files say is not refused
    ],
)
def test_keys_with_an_effect_pass(words: str) -> None:
    parse(shlex.split(words))


# --- every option of every adapter changes what comes out, or is named

Options = Mapping[str, Any]
OTHER: Options = {  # another value of each option
    "respacing": "20", "start_step": 4, "noise_level": 0.8, "downscale_factor": 8, "border": "zero", "variance": "fixed_small",
    "clip_denoised": False, "start_mismatch": True, "guidance_weight": 1.0, "guidance_norm": "batch", "guidance": "jacobian_free",
    "sampler": "ddim", "steps": 2, "range_t": 0, "reference_mismatch": True, "text_weight": 3.0, "image_weight": 1.0,
    "resolution": 8, "stretch_bright": True, "noise": 60.0, "noise_scale": 2.0, "tile": 12, "overlap": 2, "strength": 90.0,
    "patch": 3, "window": 5, "colour": 90.0, "space": 1.0, "kernel": 5, "block": 4, "threshold": 90.0, "clip": 8.0, "tiles": 4,
    "cut": 10.0,
}  # fmt: skip
SHORT: Options = {"respacing": "10", "start_step": 3}
CASES: list[tuple[str, Options]] = [
    ("dda", SHORT),
    ("dda", {**SHORT, "guidance_weight": 0.0}),
    ("dda", {**SHORT, "downscale_factor": 1}),
    ("consistency", {"respacing": "trailing50", "start_step": 3, "sampler": "consistency"}),
    ("ilvr", {**SHORT, "range_t": 1, "downscale_factor": 4}),
    ("ilvr", {**SHORT, "range_t": 2}),
    ("ilvr", {**SHORT, "range_t": 1, "downscale_factor": 1}),
    ("decorruptor", {"steps": 3}),
    ("distilled editor", {"steps": 3}),
    ("restoration", {}),
    ("restoration", {"noise": 30.0}),
    ("restoration", {"tile": 10, "overlap": 4}),
    *((name, {}) for name in CLASSICAL),
]
KINDS: dict[str, type[Adapter]] = {"dda": DDA, "consistency": DDA, "ilvr": ILVR, "decorruptor": Decorruptor,
                                   "distilled editor": Decorruptor, "restoration": Restoration, **CLASSICAL}  # fmt: skip


def result(name: str, options: Options) -> Tensor:
    """Two adapted images; an editor's are bright."""
    if KINDS[name] is Decorruptor:
        adapter: Adapter = Decorruptor(tiny_editor(8 if "distilled" in name else None), Decorruptor.Options(**options))
        return adapter.adapt(random_images(2).abs(), generators(0, 1))
    if KINDS[name] is Restoration:
        torch.manual_seed(0)
        adapter = Restoration(Restorer(FFDNet(8, 3), "FFDNet", True), Restoration.Options(**options))
        return adapter.adapt(random_images(2), [])
    if name in CLASSICAL:
        return CLASSICAL[name](CLASSICAL[name].Options(**options)).adapt(random_images(2), [])
    adapter = KINDS[name](distilled() if name == "consistency" else tiny_denoiser(), **options)
    return adapter.adapt(random_images(2), generators(0, 1))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_an_option_changes_the_images_or_is_named_or_is_a_mistake(name: str, options: Options) -> None:
    before, kind = result(name, options), KINDS[name]
    for field in dataclasses.fields(kind.Options):
        changed = {**options, field.name: OTHER[field.name]}
        if field.name == "noise_level":
            changed["start_step"] = None
        try:
            after = result(name, changed)
        except ValueError:
            continue  # refused, with a message of its own
        same = torch.equal(before, after)
        assert same == (field.name in kind.without_effect(kind.Options(**changed))), field.name


def test_all_adapters_and_options_are_among_the_cases() -> None:
    assert {*KINDS.values()} >= {row for row in ADAPTERS.values() if row.__module__.startswith("undegrade.")}
    assert {field.name for kind in KINDS.values() for field in dataclasses.fields(kind.Options)} == set(OTHER)


# --- videos, generation, soups


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--save_dir x", "--save_dir has no effect here: use --out"),
        ("--batch_size 3", "--batch_size has no effect here: use --chunk"),
        ("--overwrite true", "--overwrite has no effect here: a video is written"),
        ("--edits 2", "--edits has no effect here: a video is written"),
        ("--input.limit 3", "--input.limit has no effect here: the frames of the video are taken"),
        ("--no_cross_frame", "--no_cross_frame has no effect here: dda does every frame by itself"),
        ("--classifier_size 32", "--classifier_size has no effect here: it is for --classifier"),
        ("--guidance_weight 0 --border zero", "--dda.border has no effect here: guidance_weight is 0"),
    ],
)
def test_keys_that_are_not_for_a_video_are_refused(tmp_path: Path, words: str, message: str) -> None:
    given = ("--out", tmp_path / "out.mp4", "--model_path", "m", *shlex.split(words))
    done = run_script("image_adapt/scripts/video_edit.py", tmp_path / "in.mp4", *given)
    assert done.status == 2 and done.err == f"error: {message}\n"


def test_channels_are_guided_where_there_is_guidance(tmp_path: Path) -> None:
    done = run_script("image_adapt/scripts/generate.py", "--model_path", "m", "--save_dir", tmp_path, "--guided_channels", 2)
    assert done.status == 2 and done.err.endswith("has no effect here: guidance_scale is 1, no channel is guided\n")


@pytest.mark.parametrize(
    ("given", "changes", "reason"),
    [
        ({"recalibration_steps": 3}, {"buffers": "average"}, "--recalibration_steps has no effect here: buffers is average"),
        ({"data": {"root": "x"}}, {}, "--data.root has no effect here: Digits come with scikit-learn"),
        ({"data": {"adapted": "x"}}, {}, "--data.adapted has no effect here: statistics are measured, and members chosen, on"),
    ],
)
def test_keys_without_effect_on_a_soup_are_refused(given: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    base = {"name": "x", "members": ["{deg}"], "data": {"degradations": ["blur"]}}
    with pytest.raises(ValueError, match=f"^{reason}"):
        check_keys(build(SoupConfig, merge(base, merge(changes, given))), given)
    check_keys(build(SoupConfig, base), {"recalibration_steps": 3, "data": {"limit": 3, "levels": "shared"}})


def test_flags_that_name_the_file_of_a_soup_are_refused_beside_the_file() -> None:
    config = "configs/deg_all/Digits/ResNet20_soups.yaml"
    for flag in ("--dataset", "--arch"):
        done = run_script("utils/model_soups.py", "-c", config, flag, "x")
        assert done.status == 2 and f"error: {flag} and -c both say which file is read" in done.err


# --- pipelines

PIPELINE = """
variables: {dataset: Digits, seeds: "1,2", seed: 1, kind: {Digits: "", default: x}, unread: 1, of_kind: 2, processes: 1}
overrides: {all: {seed: "{seed}"}, some: {}}
repeat: {seed: "{seeds}"}
stages:
  first: {script: stage.py, args: {name: first}, overrides: [all]}
  second: {when: "{kind}", script: stage.py, args: {name: second, of: "{of_kind}"}, overrides: [all, some]}
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--unread 2", "--unread has no effect here: no stage that runs takes it"),
        ("--of_kind 2", "--of_kind has no effect here: no stage that runs takes it"),
        ("--seed 2", "--seed has no effect here: the stages are repeated for each of {seeds}"),
        ("--some.lr 2", "--some.lr has no effect here: no stage that runs takes it"),
        ("--second.lr 2", "--second.lr has no effect here: no stage that runs takes it"),
        ("--ranks 2", "--ranks has no effect here: no stage that runs takes it"),
        ("--kind x --all.lr 1 --first.lr 2 --some.lr 2", "--all.lr has no effect here: no stage that runs takes it"),
        ("--kind x --all.lr 1 --first.lr 2 --some.steps 2 --dry_run", ""),
        ("--kind x --of_kind 3 --seeds 3 --out x --dataset CIFAR10 --dry_run", ""),
        ("--seeds , --seed 5 --dry_run", ""),
        ("--speed 3", "--speed 3 is for the hours that --dry_run prints: give both, or neither"),
    ],
)
def test_what_no_stage_takes_is_refused(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("stage.py", STAGE), ("pipeline.yaml", PIPELINE)):
        Path(name).write_text(text)
    try:
        main(["-c", "pipeline.yaml", *shlex.split(words)])
    except ValueError as error:
        assert str(error) == message
    else:
        assert not message
