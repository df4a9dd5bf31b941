"""What the stages of a pipeline come to before any is run: images, passes of networks, arithmetic,
disk.

Everything is read off the command lines and configurations, and the sizes of the data sets are the
published ones: nothing has to be there. Of an image folder the files are counted. What cannot be
told, such as the arithmetic of a network of one's own, is named and left out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from undegrade.utils.choices import fill_names
from undegrade.utils.data.cells import parse_cells, sweep_cells
from undegrade.utils.data.label_budget import label_count
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS
from undegrade.utils.data.sources.folders import first_size
from undegrade.utils.data.sources.image_files import list_images
from undegrade.utils.data.sources.splits import TEST_SHARE, VALIDATION_SHARE
from undegrade.utils.known_sizes import NETWORKS, SIZES, WITHOUT_NETWORK, Sizes
from undegrade.utils.stage_trees import stage_tree
from undegrade.utils.stages import SCRIPTS, Command
from undegrade.utils.yaml_trees import Tree

BYTES_A_PIXEL = {"png": 3.0, "jpeg": 0.5, "npy": 6.0, "tar": 3.0}
"""Of an image on disk, at most: PNG of noisy photographs, JPEG of quality 75, arrays beside PNG."""

_BYTES_A_WEIGHT = 28.0  # the best weights, and the last state and the one before it, each with two moments of the optimiser
_BYTES_A_LOGIT = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stage comes to.

    Attributes:
        images: that it makes, or trains or tests on, each in all of its versions.
        forward, backward: passes of networks, of one image each.
        gflop: of all passes; None where a network's arithmetic is not known.
        disk: bytes, about and at most.
        unknown: what could not be told.
    """

    images: int = 0
    forward: int = 0
    backward: int = 0
    gflop: float | None = 0.0
    disk: float = 0.0
    unknown: str = ""


class _Unknown(Exception):
    """What a stage comes to cannot be told; the message says why."""


_HELD_OUT = ("validation", "val", "valid", "test")  # folders of the parts of an image folder that are not trained on
# method -> passes forward and backward of a training image, where they are not one of each: also
# those of the teacher (an editor's are three) and of the target; of the degraded image, too
_PASSES = {"distillation": (2, 1), "repfusion": (2, 1), "autoencoding": (2, 2), "consistency": (3, 1), "editor_consistency": (5, 1)}
# predictor -> passes of the classifier forward and backward of a test image, at most, and without
# those on training images; of DUSA those of the diffusion model are counted like the classifier's
_ADAPTED = {
    "bn_ema": (2, 0), "tent": (1, 1), "eata": (1, 1), "sar": (2, 2), "deyo": (2, 1), "roid": (2, 2), "rotta": (3, 1),
    "rmt": (4, 3), "cotta": (34, 1), "memo": (33, 32), "dusa": (5, 5), "live_fusion": (5, 0),
}  # fmt: skip
_DENSE = ("segmentation", "landmarks")


class _Books:
    """The costs of stages in their order: later ones work on what earlier ones make."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[int, int, int]] = {}  # folder that a stage makes: images, side, classes
        self.runs: dict[str, tuple[str, str]] = {}  # name of a run: key of NETWORKS, data set
        self.models: dict[str, str] = {}  # trained diffusion models: key of NETWORKS by the template of the run's name
        self.editors: dict[str, tuple[str, bool]] = {}  # latent editors alike: that of the autoencoder, whether it is distilled

    def cost(self, stage: Command) -> Cost:
        kinds: dict[str, Callable[[Tree], Cost]] = {
            "train": self._training, "soup": self._soup, "adapt": self._adaptation, "generate": self._generation,
            "ensemble": self._evaluation, "test": self._test, "probe": self._probe, "table": lambda tree: Cost(),
            "dense_table": lambda tree: Cost(), "protocol_table": lambda tree: Cost(),
            "adapter_table": lambda tree: Cost(), "fit": self._fit,
        }  # fmt: skip
        kind = SCRIPTS.get(stage.script, "")
        try:
            if kind not in kinds:
                raise _Unknown(f"what {stage.script} does is not known")
            return kinds[kind](stage_tree(stage))
        except _Unknown as error:
            return Cost(gflop=None, unknown=str(error))
        except KeyError as error:
            return Cost(gflop=None, unknown=f"its configuration does not say {error}")

    def _training(self, tree: Tree) -> Cost:
        data, model, method, loop = (tree.get(key, {}) for key in ("data", "model", "method", "loop"))
        sizes = self._sizes(data["dataset"])
        train, validation = sizes.train, sizes.validation
        if data.get("validation") == "test":
            train, validation = train + validation, sizes.test
        train, validation = (_limited(count, data.get("limit")) for count in (train, validation))
        if data.get("labels") is not None:
            train = label_count(data["labels"], train, sizes.classes)
        versions = max(1, len(data.get("degradations", [])))
        train, validation = train * versions, validation * versions
        epochs, (forward, backward) = loop["epochs"], _PASSES.get(method["name"], (1, 1))
        name = self._trained(tree, model, method["name"])
        validated = -(-epochs // loop.get("validate_every", 1)) * validation * _views(name)
        self.runs[_filled(tree)] = name, data["dataset"]
        side, passes = data.get("image_size") or sizes.side, (forward * (epochs * train + validated), backward * epochs * train)
        disk = _BYTES_A_WEIGHT * _weights(name)
        if tree["name"] in self.editors:
            return self._edited(tree["name"], side, train, passes, 2, epochs * train + validated, disk)
        return _of(name, side, train, *passes, ratio=2, disk=disk)

    def _trained(self, tree: Tree, model: Tree, method: str) -> str:
        """Key of NETWORKS of what a configuration trains, which is noted under the run's name."""
        if "arch" in model:
            return f"{model['arch']} {method}" if method in _DENSE else str(model["arch"])
        start = str(model.get("init_from") or "")
        if method == "restoration":
            size = f"x{model['layers']}" if model["network"] == "ffdnet" else "-".join(map(str, model["blocks"]))
            name = f"{model['network']} {model['channels']} {size}"
        elif "channels" in model:
            kind = {"autoencoding": "autoencoder ", "editing": "editor "}.get(method, "")
            name = f"{kind}{'-'.join(map(str, model['channels']))} x{model.get('blocks_per_level', 1)}"
        else:
            name = self._model({"model": start})
        if method == "editing":
            self.editors[tree["name"]] = self._model({"model": model.get("autoencoder", "editor/{dataset}/vae")}), False
        elif method == "editor_consistency" and start in self.editors:
            self.editors[tree["name"]] = self.editors[start][0], True
        self.models[tree["name"]] = name
        return name

    def _edited(self, editor: str, side: int, images: int, passes: tuple[int, int], ratio: int, encoded: int, disk: float) -> Cost:
        """Passes of a latent editor's U-Net, and the arithmetic of its autoencoder on `encoded`
        images, which halves their sides once for each level after the first.
        """
        autoencoder, _ = self.editors[editor]
        cost = _of(self.models[editor], side // 2 ** autoencoder.count("-"), images, *passes, ratio=ratio, disk=disk)
        return _with_arithmetic(cost, _of(autoencoder, side, images, encoded))

    def _soup(self, tree: Tree) -> Cost:
        data = tree["data"]
        sizes = self._sizes(data["dataset"])
        images = _limited(sizes.train, data.get("limit")) * len(data["degradations"])
        passes = images if tree.get("buffers") == "recalibrate" else 0
        return _of(tree["arch"], sizes.side, images, passes, disk=4 * _weights(tree["arch"]))

    def _adaptation(self, tree: Tree) -> Cost:
        adapter, (images, side, classes) = tree.get("adapter", "dda"), self._inputs(tree)
        options, edited = tree.get(adapter, {}), adapter == "decorruptor" and tree.get("model") in self.editors
        name = self._model(tree) if adapter == "restoration" else ""
        once = name if name in NETWORKS else None
        if once or adapter in WITHOUT_NETWORK:
            self.made[tree["save_dir"]] = images, side, classes
            disk = images * side**2 * BYTES_A_PIXEL[tree.get("output", "png")]
            return _of(once, side, images, images, disk=disk) if once else Cost(images, disk=disk)
        if not edited and (adapter not in ("dda", "ilvr") or not isinstance(options.get("start_step"), int)):
            raise _Unknown(f"the passes of the adapter {adapter} are known when it is opened (image_sample.py --dry_run)")
        name = self._model(tree)
        side = NETWORKS[name].side if name in NETWORKS and not edited else side
        self.made[tree["save_dir"]] = images, side, classes
        images *= tree.get("edits") or 1
        disk = images * side**2 * BYTES_A_PIXEL[tree.get("output", "png")]
        if edited:
            rows, steps = (1, 4) if self.editors[tree["model"]][1] else (3, 20)
            return self._edited(tree["model"], side, images, (images * rows * (options.get("steps") or steps), 0), 1, images, disk)
        steps = options["start_step"] if options.get("sampler") != "consistency" else options.get("steps") or 1
        guided = adapter == "dda" and options.get("guidance_weight", 3) > 0 and options.get("guidance", "full") == "full"
        return _of(name, side, images, images * steps, images * steps * guided, disk=disk)

    def _inputs(self, tree: Tree) -> tuple[int, int, int]:
        """Images that are adapted, their side, number of classes."""
        given = tree.get("input", {})
        if given.get("folder") is not None:
            return self.made.get(given["folder"]) or _counted(given["folder"])
        sizes, severities = self._sizes(given["dataset"]), given.get("severities", [5])
        cells = parse_cells(given["corruptions"], None if severities == "random" else severities)
        part = _limited(getattr(sizes, given.get("split", "test")), given.get("limit"))
        return _limited(part, tree.get("num_samples")) * len(cells), sizes.side, sizes.classes

    def _generation(self, tree: Tree) -> Cost:
        name, sizes = self._model(tree), self._sizes(tree["dataset"])
        images = tree.get("num_per_class", 50) * sizes.classes
        side = NETWORKS[name].side if name in NETWORKS else sizes.side
        self.made[tree["save_dir"]] = images, side, sizes.classes
        passes = images * int(tree.get("respacing") or 250) * (1 if tree.get("guidance_scale", 1) == 1 else 2)
        cost = _of(name, side, images, passes, disk=images * side**2 * BYTES_A_PIXEL["png"])
        if tree.get("vae") is None:
            return cost
        decoded = _of(_stem(tree["vae"]), side, images, images)
        return dataclasses.replace(_with_arithmetic(cost, decoded), forward=passes + images)

    def _evaluation(self, tree: Tree) -> Cost:
        data = tree["data"]
        sizes, cells = self._sizes(data["dataset"]), _cells(data)
        degradations = tree.get("degradations", [])
        asked = {member for system in tree.get("only", []) for member in tree["systems"][system]["members"]} or tree["members"]
        members = [tree["members"][name] for name in asked for _ in (degradations if "{deg}" in name else [name])]
        predictors = [member.get("predictor", {}) for member in members]
        passes = [_ADAPTED.get(predictor.get("name", "frozen"), (1, 0)) for predictor in predictors]
        forward, backward = (sum(counts) for counts in zip(*passes, strict=True))
        forward += sum(bool(predictor.get("guard")) for predictor in predictors)
        images = _limited(getattr(sizes, data.get("split", "test")), data.get("limit")) * cells
        side, disk = data.get("image_size") or sizes.side, images * len(members) * sizes.classes * _BYTES_A_LOGIT
        return _of(tree["arch"], side, images, images * forward, images * backward, ratio=2, disk=disk)

    def _fit(self, tree: Tree) -> Cost:
        return self._evaluation({**tree, "data": {**tree["data"], "split": "validation"}})

    def _test(self, tree: Tree) -> Cost:
        (name, dataset), data = self._run(tree["checkpoint"]), tree.get("data", {})
        sizes = self._sizes(data.get("dataset") or dataset)
        images = _limited(getattr(sizes, data.get("split", "test")), data.get("limit")) * _cells(data)
        return _of(name, data.get("image_size") or sizes.side, images, images * _views(name))

    def _probe(self, tree: Tree) -> Cost:
        """At most: the pass of a diffusion model ends with its last feature."""
        (name, dataset), data = self._run(tree["checkpoint"]), tree.get("data", {})
        sizes = self._sizes(data.get("dataset") or dataset)
        images = sum(_limited(count, data.get("limit")) for count in sizes[:3])
        shown = [len(str(tree.get(key, "")).split(",")) for key in ("steps", "inputs")] if name in self.models.values() else [1, 1]
        return _of(name, sizes.side, images, images * shown[0] * shown[1])

    def _run(self, name: str) -> tuple[str, str]:
        """Key of NETWORKS and data set of what a stage before trains."""
        if name not in self.runs:
            raise _Unknown(f"the network of {name} is known when it is opened")
        return self.runs[name]

    def _model(self, tree: Tree) -> str:
        """Key of NETWORKS of the diffusion model that a configuration names."""
        return self.models.get(tree["model"]) or _stem(tree["model"])

    def _sizes(self, dataset: str) -> Sizes:
        if dataset in SIZES:
            return SIZES[dataset]
        if made := self.made.get(f"{dataset}/train"):  # generated images: a tenth of them is for validation
            validation = round(VALIDATION_SHARE * made[0])
            return Sizes(made[0] - validation, validation, 0, made[1], made[2])
        root = Path(dataset)
        train, side, classes = _counted(str(root / "train" if (root / "train").is_dir() else root))
        held_out = [_counted(str(root / part))[0] for part in _HELD_OUT if (root / part).is_dir()]
        if len(held_out) == 2:
            return Sizes(train, held_out[0], held_out[1], side, classes)
        test = held_out[0] if held_out else round(TEST_SHARE * train)
        train -= 0 if held_out else test
        validation = round(VALIDATION_SHARE * train)
        return Sizes(train - validation, validation, test, side, classes)


@functools.lru_cache
def _counted(folder: str) -> tuple[int, int, int]:
    """Images below a folder, their side, and how many folders they lie in."""
    if not Path(folder).is_dir():
        raise _Unknown(f"{folder} is not there: its images cannot be counted")
    paths = list_images(Path(folder))
    if not paths:
        raise _Unknown(f"{folder} holds no images")
    return len(paths), min(first_size(paths)), len({path.relative_to(folder).parts[0] for path in paths})


def _filled(tree: Tree) -> str:
    """The name of a run, {dataset} and {arch} filled in."""
    names = {"dataset": Path(tree["data"]["dataset"]).name, "arch": tree.get("model", {}).get("arch", "")}
    return fill_names(tree["name"], names, repr(tree["name"]), ["deg"])


def _cells(data: Tree) -> int:
    """How many test sets an evaluation has."""
    swept = [name for given in data.get("sweep", []) for name in (DEGRADATIONS if given == "all" else [given])]
    cells = {*parse_cells(data.get("corruptions", []), data.get("severities", [1, 2, 3, 4, 5]))}
    return len(cells | {cell for name in swept for cell in sweep_cells(name)})


def _views(name: str) -> int:
    """Passes of an image that is judged: of points also of its mirror image."""
    return 2 if name.endswith("landmarks") else 1


def _weights(name: str) -> float:
    network = NETWORKS.get(name.partition(".")[0])
    return 0.0 if network is None else network.weights * 1e6


def _of(name: str, side: int, images: int, forward: int, backward: int = 0, ratio: int = 1, disk: float = 0.0) -> Cost:
    """The cost of passes of a network; a pass backward costs `ratio` passes forward."""
    network = NETWORKS.get(name.partition(".")[0])
    if network is None:
        why = f"the arithmetic of the network {name} is not known" if forward else ""
        return Cost(images, forward, backward, None if forward else 0.0, disk, why)
    gflop = network.gflop * (side / network.side) ** 2 * (forward + ratio * backward)
    return Cost(images, forward, backward, gflop, disk)


def _with_arithmetic(cost: Cost, other: Cost) -> Cost:
    """A cost, and the arithmetic of another network on the same images."""
    gflop = None if cost.gflop is None or other.gflop is None else cost.gflop + other.gflop
    return dataclasses.replace(cost, gflop=gflop, unknown=cost.unknown or other.unknown)


def _limited(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".pt").removesuffix(".pth").removesuffix(".safetensors")


def costs(stages: Sequence[Command]) -> list[Cost]:
    """What each of the stages comes to."""
    books = _Books()
    return [books.cost(stage) for stage in stages]
