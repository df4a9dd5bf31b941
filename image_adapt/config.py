"""The keys of an adaptation YAML, and the flags of the published command line that mean the same."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal

from undegrade.utils.choices import fill_names
from undegrade.utils.data.cells import Cell, parse_cells
from undegrade.utils.data.perturbations.watermark import WATERMARK
from undegrade.utils.data.sources.registry import SourceConfig


@dataclasses.dataclass(frozen=True)
class ChainConfig:
    """What all adapters have; each is explained at `image_adapt.reverse.ReverseChain`.

    Attributes:
        respacing: chain as guided-diffusion writes it: "100" evenly spaced steps of the full chain.
        start_step: number of reverse steps, i.e. index of the respaced chain from which the noised
            image is denoised (paper: N). 50 where neither this nor `noise_level` is given.
        noise_level: in place of start_step: alpha_bar in (0, 1), share of the signal in the
            variance of the noised image.
        downscale_factor: of the low-pass filter whose output is kept (paper: D).
        border: of the low-pass filter: reflect | zero (as the paper's code, which weakens guidance
            in a frame of 14 px).
        variance: of a reverse step: learned | fixed_large | fixed_small (null: learned if the model
            has it, else fixed_large).
        clip_denoised: clamp the predicted clean image to [-1, 1].
        start_mismatch: noise one index more than is denoised (as the paper's code).
    """

    respacing: str | int = "100"
    start_step: int | None = None
    noise_level: float | None = None
    downscale_factor: int = 4
    border: Literal["reflect", "zero"] = "reflect"
    variance: Literal["learned", "fixed_large", "fixed_small"] | None = None
    clip_denoised: bool = True
    start_mismatch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "respacing", str(self.respacing))  # 100 and "100" are the same settings


@dataclasses.dataclass(frozen=True)
class DDAConfig(ChainConfig):
    """Diffusion-driven adaptation (Gao et al., CVPR 2023).

    Attributes:
        guidance_weight: strength of the pull towards the input's low frequencies, for each image
            (paper: w, there for batches of 4: w = 6 is 3 an image). 0 leaves the gradient out and
            costs a third.
        guidance_norm: per_image | batch (as the paper's code: images of a batch share one norm, so
            results depend on batch mates; the last batch is then not filled up).
        guidance: full (gradient through the network) | jacobian_free (past it: no pass backward, a
            third of the time).
        sampler: ddpm | ddim (no new noise in a step, for short chains).
    """

    guidance_weight: float = 3.0
    guidance_norm: Literal["per_image", "batch"] = "per_image"
    guidance: Literal["full", "jacobian_free"] = "full"
    sampler: Literal["ddpm", "ddim"] = "ddpm"


@dataclasses.dataclass(frozen=True)
class ILVRConfig(ChainConfig):
    """Iterative latent variable refinement (Choi et al., ICCV 2021), as DDA's first version used
    it: D = 8.

    Attributes:
        range_t: reverse steps from this index of the chain and below are left free (DDA's first
            version: 20 of N = 50).
        reference_mismatch: noise the input one index more than the step has reached (as the
            published code).
    """

    downscale_factor: int = 8
    range_t: int = 20
    reference_mismatch: bool = False


@dataclasses.dataclass(frozen=True)
class InputConfig(SourceConfig):
    """Which images are adapted: those of a data set, corrupted as in evaluation (further keys: see
    SourceConfig), or a folder.

    Attributes:
        split: train | validation | test.
        folder: adapt the images below this folder instead (any depth, as they are), or the
            published arrays of CIFAR-10-C in it (`<corruption>.npy` beside `labels.npy`).
        layout: how `folder` is organised: see `LAYOUTS`.
        corruptions: names, degradations (their level drawn for each image) and sequences; `clean`
            for the images as they are.
        severities: of the corruptions, 1..5, or `random`: one drawn for each image.
        seed: of the corruption.
        train: the training part of a `folder` in the layouts that have one.
        list_file: text file; adapt these images of each cell only: a key or relative path a line,
            `#` for remarks.
        enlarge: take images whose shorter side is less than half of the model's, too (default:
            refuse them by name).
    """

    split: Literal["train", "validation", "test"] = "test"
    folder: str | None = None
    layout: Literal["plain", "imagenetc", "imagenetw", "imagenet", "cifar10", "cifar10c"] = "plain"
    corruptions: list[str] = field(default_factory=list)
    severities: list[int] | Literal["random"] = field(default_factory=lambda: [5])
    seed: int = 0
    train: bool = False
    list_file: str | None = None
    enlarge: bool = False

    def cells(self) -> list[Cell]:
        """The cells asked for, each once; a layout of `ONE_CELL` has that one.

        Raises:
            ValueError: none named, an unknown name, a severity outside 1..5.
        """
        if self.folder is not None and self.layout in ONE_CELL and not self.corruptions:
            return [ONE_CELL[self.layout]]
        if not self.corruptions:
            raise ValueError("input.corruptions is empty: name corruptions or degradations, e.g. --corruption gaussian_noise")
        return list(dict.fromkeys(parse_cells(self.corruptions, None if isinstance(self.severities, str) else self.severities)))


# layout -> folder of a cell, below the input root and below the output root alike; {part} for its
# training and test part
LAYOUTS: dict[str, tuple[str, dict[bool, str]]] = {
    "plain": ("", {}),
    "imagenetc": ("{cell.folder}", {}),
    "imagenetw": ("val", {}),
    "imagenet": ("{cell.corruption}/{part}", {True: "train", False: "val"}),
    "cifar10": ("{cell.corruption}/{part}", {True: "cifar_train", False: "cifar_test"}),
    "cifar10c": ("{cell.folder}", {}),
}

ONE_CELL = {"plain": Cell("", 0), "imagenetw": Cell(WATERMARK, 0)}  # layouts without corruptions, and what their images are
# SDA's word for what is adapted -> layout of the input, and folder of the output below the one that
# is named
DATATYPES = {"D": ("plain", "DiT-Syn"), "C": ("imagenetc", "ImageNet-C-Syn"), "W": ("imagenetw", "ImageNet-W-Syn")}


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """An adaptation YAML.

    Attributes:
        model: checkpoint file, run folder or run name of the diffusion model; `{dataset}` is
            replaced.
        save_dir: adapted images go to `<save_dir>/<corruption>/<severity>/<class>/<name>.png`;
            `{dataset}`, `{split}` and `{adapter}` are replaced.
        adapter: dda | ilvr; its options are those of the section of that name.
        runs: root of the runs, for `model` by name.
        batch_size: images adapted together on a rank; the last batch is filled up, so that every
            batch has this shape.
        num_samples: adapt at most so many images of each cell, the same in each (null: all).
        output: png | jpeg (lossy: Pillow's default of quality 75 and 4:2:0, as the paper's code
            wrote ImageNet) | npy (png, and at the end arrays in the layout of CIFAR-10-C) | tar
            (png in tar files that WebDataset reads: utils/data/sources/shards.py).
        shard_size: images of a tar file; ranks share out whole tar files.
        rounding: of grey levels: round | truncate (as the paper's code, which darkens by half a
            level).
        seed: of the diffusion noise; with an image's key it fixes the result.
        use_fp16: bfloat16 autocast of the network.
        skip_broken: files that cannot be decoded do not make the command fail (they are always
            listed, counted and passed over).
        overwrite: delete what the output folders hold if it was made with other settings (default:
            refuse).
        input, dda, ilvr: see there.
    """

    model: str
    save_dir: str
    adapter: Literal["dda", "ilvr"] = "dda"
    runs: str = "runs"
    batch_size: int = 16
    num_samples: int | None = None
    output: Literal["png", "jpeg", "npy", "tar"] = "png"
    shard_size: int = 1000
    rounding: Literal["round", "truncate"] = "round"
    seed: int = 0
    use_fp16: bool = False
    skip_broken: bool = False
    overwrite: bool = False
    input: InputConfig = field(default_factory=InputConfig)
    dda: DDAConfig = field(default_factory=DDAConfig)
    ilvr: ILVRConfig = field(default_factory=ILVRConfig)

    @property
    def options(self) -> ChainConfig:
        """Those of the adapter that is used."""
        return self.ilvr if self.adapter == "ilvr" else self.dda

    @property
    def batch_matters(self) -> bool:
        """Whether an image's result depends on its batch."""
        return isinstance(self.options, DDAConfig) and self.options.guidance_norm == "batch"

    def fill(self, text: str) -> str:
        """`{dataset}`, `{split}` and `{adapter}` replaced in names and paths."""
        values = {"dataset": Path(self.input.dataset).name, "split": self.input.split, "adapter": self.adapter}
        return fill_names(text, values, f"{text!r}")
