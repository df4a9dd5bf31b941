"""The keys of an adaptation YAML, and the flags of the published command line that mean the same."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal

from utils.data.cells import Cell, parse_cells


@dataclasses.dataclass(frozen=True)
class DDAConfig:
    """Diffusion-driven adaptation (Gao et al., CVPR 2023).

    Attributes:
        respacing: chain as guided-diffusion writes it: "100" evenly spaced steps of the full chain.
        start_step: number of reverse steps, i.e. index of the respaced chain from which the noised image is denoised (paper: N).
        downscale_factor: of the low-pass filter whose output is kept (paper: D).
        guidance_weight: strength of the pull towards the input's low frequencies, for each image (paper: w, there for batches of 4:
            w = 6 is 3 an image). 0 leaves the gradient out and costs a third.
        guidance_norm: per_image | batch (as the paper's code: images of a batch share one norm, so results depend on batch mates).
        border: of the low-pass filter: reflect | zero (as the paper's code, which weakens guidance in a frame of 14 px).
        start_mismatch: noise one index more than is denoised (as the paper's code).
    """

    respacing: str | int = "100"
    start_step: int = 50
    downscale_factor: int = 4
    guidance_weight: float = 3.0
    guidance_norm: Literal["per_image", "batch"] = "per_image"
    border: Literal["reflect", "zero"] = "reflect"
    start_mismatch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "respacing", str(self.respacing))  # 100 and "100" are the same settings


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """Which images are adapted.

    Attributes:
        dataset: `Digits`, `CIFAR10`, `CIFAR100` or an image folder, corrupted as it is read.
        root: where downloaded data sets lie.
        split: train | validation | test.
        limit: class-balanced subset of so many images.
        folder: adapt the images below this folder instead (any depth, as they are).
        layout: how `folder` is organised: see `LAYOUTS`.
        corruptions: names, degradations (their level drawn for each image) and sequences; `clean` for the images as they are.
        severities: of the corruptions, 1..5.
        constants: set of the corruption constants: cifar | tiny | imagenet (null: by image size).
        seed: of the corruption.
        train: the training part of a `folder` in the layouts that have one.
    """

    dataset: str = "Digits"
    root: str = "data"
    split: Literal["train", "validation", "test"] = "test"
    limit: int | None = None
    folder: str | None = None
    layout: Literal["plain", "imagenetc", "imagenet", "cifar10", "cifar10c"] = "plain"
    corruptions: list[str] = field(default_factory=list)
    severities: list[int] = field(default_factory=lambda: [5])
    constants: Literal["cifar", "tiny", "imagenet"] | None = None
    seed: int = 0
    train: bool = False

    def cells(self) -> list[Cell]:
        """The cells asked for; a plain folder is one."""
        if self.folder is not None and self.layout == "plain":
            return [Cell("", 0)]
        if not self.corruptions:
            raise ValueError("input.corruptions is empty: name corruptions or degradations, e.g. --corruption gaussian_noise")
        return parse_cells(self.corruptions, self.severities)


# folder below the input root, and below the output root, for a corruption; {part} by layout for its training and test part
LAYOUTS: dict[str, tuple[str, dict[bool, str]]] = {
    "plain": ("", {}),
    "imagenetc": ("{corruption}/{severity:g}", {}),
    "imagenet": ("{corruption}/{part}", {True: "train", False: "val"}),
    "cifar10": ("{corruption}/{part}", {True: "cifar_train", False: "cifar_test"}),
    "cifar10c": ("{corruption}/{severity:g}", {}),
}


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """An adaptation YAML.

    Attributes:
        model: checkpoint file, run folder or run name of the diffusion model; `{dataset}` is replaced.
        save_dir: adapted images go to `<save_dir>/<corruption>/<severity>/<class>/<name>.png`; `{dataset}`, `{split}` are replaced.
        runs: root of the runs, for `model` by name.
        batch_size: images adapted together on a rank; the last batch is filled up, so that every batch has this shape.
        num_samples: adapt at most so many images of each cell (null: all).
        seed: of the diffusion noise; with an image's key it fixes the result.
        use_fp16: bfloat16 autocast of the network.
        skip_broken: files that cannot be decoded do not make the command fail (they are always listed, counted and passed over).
        overwrite: delete what the output folders hold if it was made with other settings (default: refuse).
        input, dda: see there.
    """

    model: str
    save_dir: str
    runs: str = "runs"
    batch_size: int = 16
    num_samples: int | None = None
    seed: int = 0
    use_fp16: bool = False
    skip_broken: bool = False
    overwrite: bool = False
    input: InputConfig = field(default_factory=InputConfig)
    dda: DDAConfig = field(default_factory=DDAConfig)

    def fill(self, text: str) -> str:
        """`{dataset}` and `{split}` replaced in names and paths."""
        return text.replace("{dataset}", Path(self.input.dataset).name).replace("{split}", self.input.split)
