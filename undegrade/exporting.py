"""Systems as programs of torch.export (.pt2) and ONNX, compared with the system itself."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from undegrade.measured import read_measured
from undegrade.one_pass import OnePass
from undegrade.system import System
from undegrade.utils.data.sources.images import Resize
from undegrade.utils.extras import how_to_install
from undegrade.utils.files import replacing
from undegrade.utils.model_card import make_card
from undegrade.utils.provenance import library_versions
from undegrade.utils.saved_folder import check_free

Format = Literal["torch", "onnx"]
Pixels = Literal["uint8", "float32"]
FILES: dict[str, str] = {"torch": "model.pt2", "onnx": "model.onnx"}
METADATA = "metadata.json"
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 2, 5)  # that the parity is measured on
_TOLERANCE = 1e-4  # of probabilities
_OF_LEVELS = 1e-2  # of those of restored images, whose grey levels may be rounded to the next one
_USAGE = {
    "torch": """import torch

probabilities = torch.export.load("{place}/model.pt2").module()(images)  # images: see above""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{place}/model.onnx")
(probabilities,) = session.run(None, {{"images": images}})  # images: see above""",
}


def export_program(system: System, folder: Path, form: Format, pixels: Pixels = "uint8") -> dict[str, Any]:
    """Write a program of images [B,3,S,S] (any B from 1 on) to probabilities [B,K], and
    metadata.json, which says what it takes and gives.

    Args:
        system: of `OnePass`, on the CPU.
        folder: that is there.
        form: torch (for `torch.export.load`) or onnx.
        pixels: of the images: uint8 in 0..255, or float32 in [0,1].

    Returns:
        What metadata.json holds; `max_difference`: the largest difference from the system's own
        probabilities on random images.

    Raises:
        ValueError: a system of more than a pass, a package that is missing (names the extra), an
            operation that ONNX does not have, or a program that says something else than the
            system.
    """
    if form == "onnx":
        _check_onnx()
    module = copy.deepcopy(OnePass(system)).eval().requires_grad_(False)
    side = system.image_size
    example = random_images(2, side, pixels)
    with torch.no_grad(), _quiet():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    limit = _OF_LEVELS if system.adapters else _TOLERANCE
    described = _description(system, pixels)
    path = folder / FILES[form]
    if form == "torch":
        with _quiet():
            torch.export.save(program, path, extra_files={METADATA: json.dumps(described)})
    else:
        _write_onnx(program, path, described)
    with _quiet():
        run = _runner(path, form)
    pairs = [(run(x), eager(system, x)) for x in (random_images(count, side, pixels) for count in _BATCHES)]
    difference = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    if difference > limit:
        raise ValueError(
            f"the exported program differs from {system.name} by {difference:.2g} in its probabilities, more than {limit:g}: it is "
            "not kept; please report it with the versions of torch, onnxscript and onnxruntime"
        )
    described["max_difference"] = difference
    (folder / METADATA).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return described


def save_program(
    system: System, out: Path, form: Format, pixels: Pixels = "uint8", *, results: Path | None = None, row: str | None = None,
    **card: Any,
) -> dict[str, Any]:  # fmt: skip
    """A folder of `export_program` with its model card, all of it or nothing; returns what
    metadata.json holds.

    Args:
        system, form, pixels: of `export_program`.
        out: a folder that is not there, or is empty.
        results, row, card: see `System.generate_model_card`.
    """
    check_free(out)
    measured = None if results is None else read_measured(results, system, row)
    with replacing(out) as folder:
        folder.mkdir()
        found = export_program(system, folder, form, pixels)
        taken = found["input"]
        kind, side = "torch.export" if form == "torch" else "ONNX", system.image_size
        about = [
            f"A program of {kind}: images {taken['dtype']} [batch,3,{side},{side}] in {taken['range']} (RGB) to probabilities "
            f"[batch,{len(system.classes)}], any batch size. Before it: {found['before']}. Inside it: {found['inside']}. Its "
            f"probabilities differ from those of the system by {found['max_difference']:.2g} at most, on random images in batches "
            f"of {', '.join(map(str, _BATCHES))}."
        ]
        said = system.card()
        library = "onnx" if form == "onnx" else "pytorch"
        said = dataclasses.replace(said, about=[*about, *said.about], usage=_USAGE[form], library=library)
        make_card(said, measured, **card).save(folder / "README.md")
    return found


def random_images(count: int, side: int, pixels: Pixels) -> Tensor:
    """Images [count,3,side,side] as a program takes them, the same ones at each call: noise over
    brightness of its own.
    """
    generator = torch.Generator().manual_seed(count)
    noise = torch.rand(count, 3, side, side, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)
    images = (noise * 255).to(torch.uint8)
    return images if pixels == "uint8" else images.float() / 255


def eager(system: System, images: Tensor) -> Tensor:
    """Probabilities [B,K] as the system has them, of images of its own size."""
    return torch.cat(list(system.scores(images, framed=True))).float()


def _description(system: System, pixels: Pixels) -> dict[str, Any]:
    side, resize = system.image_size, system.resize or Resize(system.image_size)
    restored = "".join(f"{one.facts['adapter']} of the cut image and its grey levels, " for one in system.adapters.values())
    levels = "0 to 255" if pixels == "uint8" else "0 to 1"
    return {
        "system": repr(system),
        "input": {"name": "images", "shape": ["batch", 3, side, side], "dtype": pixels, "range": levels, "channels": "RGB"},
        "output": {"name": "probabilities", "shape": ["batch", len(system.classes)], "dtype": "float32"},
        "classes": system.classes,
        "before": f"the shorter side brought to {resize.side} pixels ({resize.interpolation}), the centre of {side} x {side} cut",
        "inside": f"scale and normalisation of the images, {restored}the rule {system.rule.rule}, probabilities of sum 1",
        "libraries": {name: version for name, version in library_versions().items() if name in ("torch", "timm")},
    }


def _check_onnx() -> None:
    missing = [name for name in _ONNX if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {' and '.join(missing)}: {how_to_install('onnx')}")


def _write_onnx(program: torch.export.ExportedProgram, path: Path, described: dict[str, Any]) -> None:
    # what ONNX lacks by what it has
    program = program.run_decompositions({**torch.export.default_decompositions(), torch.ops.aten.median.dim: _median})
    try:
        with _quiet():
            made = torch.onnx.export(
                program, (), dynamo=True, input_names=["images"], output_names=["probabilities"], verbose=False, optimize=True
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reasons = [line for line in str(error).splitlines() if "No ONNX function" in line] or str(error).splitlines()[:1]
        raise ValueError(f"ONNX cannot say all of the system ({reasons[0]}): export it by --format torch") from error
    assert made is not None
    made.model.metadata_props.update({"undegrade": json.dumps(described)})
    made.save(path)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median, as `torch.median` has it, by sorting."""
    values, places = x.sort(dim)
    middle = (x.shape[dim] - 1) // 2
    found = values.narrow(dim, middle, 1), places.narrow(dim, middle, 1)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


def _runner(path: Path, form: Format) -> Any:
    """Images -> probabilities, by what other programs would use."""
    if form == "torch":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(["probabilities"], {"images": x.numpy()})[0]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings and steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
