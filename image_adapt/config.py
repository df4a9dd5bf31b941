"""The keys of an adaptation YAML: what all adapters share here, the options of each in its own
file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from undegrade.image_adapt.adapters import ADAPTERS, DEFAULT
from undegrade.models.diffusion.precision import Precision
from undegrade.utils.choices import fill_names
from undegrade.utils.data.cells import Cell, parse_cells
from undegrade.utils.data.perturbations.watermark import WATERMARK
from undegrade.utils.data.sources.registry import SourceConfig
from undegrade.utils.ranges import Count, Seed


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
    severities: list[Count] | Literal["random"] = field(default_factory=lambda: [5])
    seed: Seed = 0
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
    """An adaptation YAML without the adapters' options: those are sections of `adapt_schema`.

    Attributes:
        save_dir: adapted images go to `<save_dir>/<corruption>/<severity>/<class>/<name>.png`;
            `{dataset}`, `{split}` and `{adapter}` are replaced.
        model: checkpoint file, run folder or run name of the diffusion model, for adapters that
            have one; `{dataset}` is replaced.
        adapter: what adapts the images; its options are those of the section of that name.
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
        seed: of the adapter's noise; with an image's key it fixes the result.
        edits: adapt every image so often, with the seeds from `seed` on, each into a folder of its
            own: `<save_dir>/edit0`, `edit1`, ... (null: once, into `save_dir` itself).
        precision: of the network's products, with float32 around them: float32 | bfloat16 |
            float16 (what `--use_fp16 true` means, as guided-diffusion's; its error is an eighth of
            bfloat16's).
        skip_broken: files that cannot be decoded do not make the command fail (they are always
            listed, counted and passed over).
        overwrite: delete what the output folders hold if it was made with other settings (default:
            refuse).
        input: see there.
    """

    save_dir: str
    model: str | None = None
    adapter: str = DEFAULT
    runs: str = "runs"
    batch_size: Count = 16
    num_samples: Count | None = None
    output: Literal["png", "jpeg", "npy", "tar"] = "png"
    shard_size: Count = 1000
    rounding: Literal["round", "truncate"] = "round"
    seed: Seed = 0
    edits: Count | None = None
    precision: Precision = "float32"
    skip_broken: bool = False
    overwrite: bool = False
    input: InputConfig = field(default_factory=InputConfig)

    def fill(self, text: str) -> str:
        """`{dataset}`, `{split}` and `{adapter}` replaced in names and paths."""
        values = {"dataset": Path(self.input.dataset).name, "split": self.input.split, "adapter": self.adapter}
        return fill_names(text, values, f"{text!r}")

    def each_edit(self) -> list[AdaptConfig]:
        """The configurations of the edits, each as one of its own."""
        if self.edits is None:
            return [self]
        folder = Path(self.save_dir)
        return [
            dataclasses.replace(self, save_dir=str(folder / f"edit{k}"), seed=self.seed + k, edits=None) for k in range(self.edits)
        ]


def adapt_schema() -> type[AdaptConfig]:
    """`AdaptConfig` with a section for each registered adapter.

    Raises:
        ValueError: an adapter that is called like another key, or has an option without default.
    """
    taken = sorted({key.name for key in dataclasses.fields(AdaptConfig)} & set(ADAPTERS))
    if taken:
        raise ValueError(f"the adapter {taken[0]!r} is called like a key of the adaptation YAML: give it another name")
    for name, row in ADAPTERS.items():
        bare = [key.name for key in dataclasses.fields(row.Options) if key.default is key.default_factory is dataclasses.MISSING]
        if bare:
            raise ValueError(f"the option {bare[0]} of the adapter {name} has no default: give it one, None if it must be set")
    names: Any = Literal[tuple(ADAPTERS)]
    sections = [(name, row.Options, field(default_factory=row.Options)) for name, row in ADAPTERS.items()]
    return dataclasses.make_dataclass(
        "AdaptConfig",
        [("adapter", names, DEFAULT), *sections],
        bases=(AdaptConfig,),
        namespace={"__module__": __name__},  # where the names of types are looked up
        frozen=True,
    )
