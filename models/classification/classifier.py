"""Classifiers: a network with its input normalisation and named features.

The weights that go to disk are `classifier.network.state_dict()`, with the network's own names, so
that checkpoints of other programs load and ours load there; `describe` is the metadata beside them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from undegrade.models.classification.resnet import ARCHS, build_small_network
from undegrade.models.normalisation import NormalisedNetwork
from undegrade.utils.choices import check_choice
from undegrade.utils.model_card import Card
from undegrade.utils.saved_folder import SavedFolder

KIND = "classifier"


class Classifier(NormalisedNetwork, SavedFolder):
    """Network that takes images in [0,1]: logits = network((x - mean) / std), of all its classes
    or of those that `restrict` names.

    Features are read by forward hooks that exist during one call only. Their names:
        stage1, stage2, ...: the outputs of the modules in the network's `feature_info`, in its
            order, as the network lays them out ([B,C,H,W], [B,H,W,C] for Swin, tokens [B,N,C] for
            ViT). For our ResNets the post-ReLU maps of res1..res3; timm's ResNets count the stem as
            stage1, their last stage is stage5.
        pooled: [B,D], the input of the final linear layer.

    Args:
        network: normalised images [B,3,H,W] -> logits [B,K].
        arch: name under which `build_classifier` builds the network.
        num_classes: K.
        mean, std: per channel, on the scale of [0,1].

    Attributes:
        about: what else its checkpoint says, such as its classes; saved with it.

    Raises:
        ValueError: mean or std is not three finite numbers, or a std is not positive.
    """

    outputs: Tensor | None  # buffer, int64 [K]: the outputs of the network that are the answer; None: all

    def __init__(self, network: nn.Module, arch: str, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.network = network
        self.arch = arch
        self.network_classes = num_classes
        self.about: dict[str, Any] = {}
        self.register_buffer("outputs", None, persistent=False)

    @property
    def num_classes(self) -> int:
        """K: of the network, or those that `restrict` leaves."""
        return self.network_classes if self.outputs is None else len(self.outputs)

    def restrict(self, outputs: Sequence[int]) -> None:
        """Answer with these outputs of the network only: logits are [B, len(outputs)], in this
        order.

        For images of some of the classes: no other class can be predicted, and probabilities are
        those among the classes that are left. The network and its description stay as they are.
        """
        self.outputs = torch.tensor(outputs, device=self.mean.device)

    @property
    def feature_names(self) -> list[str]:
        """The names that `features` knows."""
        return list(_feature_sites(self.network))

    def forward(self, x: Tensor, feature_names: Sequence[str] | None = None) -> Any:
        """Images in [0,1] [B,3,H,W] -> logits [B,K]; with `feature_names`, what `forward_features`
        returns.

        A classifier inside DistributedDataParallel must be called, not asked for
        `forward_features`: only the wrapper's call prepares the exchange of gradients.
        """
        if feature_names is None:
            return self._logits(x)
        return self.forward_features(x, feature_names)

    def forward_features(self, x: Tensor, names: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B,K] and the features called `names` (None: all) from one pass over images in
        [0,1] [B,3,H,W].

        Raises:
            ValueError: a name that this network lacks.
            RuntimeError: the network did not call the module behind a name; so it is when `network`
                alone is compiled instead of the whole classifier.
        """
        sites = _feature_sites(self.network)
        wanted = list(sites) if names is None else [check_choice(n, sites, "feature", self.arch) for n in names]
        taken: dict[str, Tensor] = {}
        handles: list[RemovableHandle] = []
        try:
            for name in wanted:
                handles.append(_tap(*sites[name], name, taken))
            logits = self._logits(x)
        finally:
            for handle in handles:
                handle.remove()
        silent = [name for name in wanted if name not in taken]
        if silent:
            raise RuntimeError(
                f"{self.arch} never called the modules of {', '.join(silent)}: take other features of {list(sites)}, "
                "and if classifier.network is compiled, compile the whole classifier instead"
            )
        return logits, {name: taken[name] for name in wanted}

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalise(x))
        return logits if self.outputs is None else logits[:, self.outputs]

    def features(self, x: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The features of `forward_features` alone."""
        return self.forward_features(x, names)[1]

    def _save_pretrained(self, save_directory: Path) -> None:
        from undegrade.models.classification.saved import save_classifier  # it builds classifiers

        if self.outputs is not None:
            raise ValueError(
                f"{self.arch} answers with {len(self.outputs)} of its {self.network_classes} classes: save the whole system"
            )
        save_classifier(save_directory, self)

    @classmethod
    def open_folder(cls, folder: Path, **options: Any) -> Classifier:
        """What `save_pretrained` wrote, in eval mode; what huggingface_hub takes for options is of
        config.json, and the weights say it themselves.
        """
        from undegrade.models.classification.saved import open_classifier

        return open_classifier(folder)

    def card(self) -> Card:
        """What its folder says of itself."""
        from undegrade.models.classification.saved import classifier_card

        return classifier_card(self)


def as_map(classifier: Classifier, name: str, feature: Tensor) -> Tensor:
    """A feature as [B,C,h,w]; vectors [B,C] as maps of one place.

    Raises:
        ValueError: tokens, which lie in no map.
    """
    if feature.ndim == 2:
        return feature[:, :, None, None]
    if feature.ndim != 4:
        raise ValueError(f"the feature {name} has the shape {list(feature.shape)}: take `pooled`, or a map [B, C, h, w]")
    channels_last = getattr(classifier.network, "output_fmt", "NCHW") == "NHWC"  # timm's Swin
    return feature.permute(0, 3, 1, 2) if channels_last else feature


def _feature_sites(network: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Feature name -> (module, whether its input rather than its output is the feature)."""
    modules = dict(network.named_modules())
    stages = [info.get("module") for info in getattr(network, "feature_info", [])]
    sites = {f"stage{i}": (modules[path], False) for i, path in enumerate(stages, start=1) if path in modules}
    heads = final_layers(network)
    if len(heads) == 1:  # with two heads (distilled ViTs) there is no single pooled vector
        sites["pooled"] = (modules[heads[0]], True)
    return sites


def _tap(module: nn.Module, is_input: bool, name: str, taken: dict[str, Tensor]) -> RemovableHandle:
    """Hook that files the feature under `name` in `taken`."""

    def file_output(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        taken[name] = output

    def file_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken[name] = inputs[0].flatten(1)

    return module.register_forward_pre_hook(file_input) if is_input else module.register_forward_hook(file_output)


def final_layers(network: nn.Module) -> list[str]:
    """Paths of the final linear layers; none for a network without timm's `get_classifier`."""
    get_classifier: Callable[[], Any] = getattr(network, "get_classifier", tuple)
    found = get_classifier()
    layers = found if isinstance(found, tuple) else (found,)
    return [path for path, module in network.named_modules() if any(module is layer for layer in layers)]


def final_layer(classifier: Classifier) -> nn.Linear:
    """The last layer, [B,D] -> logits [B,K]; of a restricted classifier a frozen one with those
    outputs alone.

    Raises:
        ValueError: there is none, there are several, or it is not linear.
    """
    found = [classifier.network.get_submodule(path) for path in final_layers(classifier.network)]
    if len(found) != 1 or not isinstance(found[0], nn.Linear):
        raise ValueError(f"{classifier.arch} has no single final linear layer, only {found}: choose another network or method")
    if classifier.outputs is None:
        return found[0]
    chosen = nn.Linear(found[0].in_features, classifier.num_classes, found[0].bias is not None, device=classifier.mean.device)
    chosen.load_state_dict({name: values[classifier.outputs] for name, values in found[0].state_dict().items()})
    return chosen.requires_grad_(False)


def build_classifier(
    arch: str,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    pretrained: bool = False,
    drop_path: float | None = None,
) -> Classifier:
    """Classifier with fresh weights, or timm's pretrained ones with a new head where `num_classes`
    is not theirs.

    Args:
        arch: a name of `models.classification.resnet.ARCHS` or any timm name, with or without
            weights tag.
        num_classes: K, at least 2.
        mean, std: input normalisation per channel, on the scale of [0,1].
        pretrained: load timm's weights (from the network, or its local cache), and take the mean
            and std that belong to them.
        drop_path: rate of stochastic depth, for timm networks that have it (None: timm's default).

    Raises:
        ValueError: unknown `arch` (names the closest), fewer than 2 classes, no pretrained weights
            of that name, no stochastic depth in that network, unfit mean or std.
    """
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {num_classes}")
    if arch not in ARCHS:
        classifier = Classifier(_build_timm(arch, num_classes, pretrained, drop_path), arch, num_classes, mean, std)
        if pretrained:
            classifier.set_normalisation(*published_normalisation(classifier))
        return classifier
    if pretrained:
        raise ValueError(f"there are no pretrained weights for {arch}: train it, or start from a checkpoint")
    if drop_path is not None:
        raise ValueError(f"{arch} has no stochastic depth: leave drop_path out")
    return Classifier(build_small_network(arch, num_classes), arch, num_classes, mean, std)


def check_timm_name(arch: str) -> None:
    """Raise ValueError unless timm has a network of that name; names the closest."""
    import timm  # here, since it takes seconds and the CIFAR networks do without

    if not timm.is_model(arch):
        close = difflib.get_close_matches(arch, [*ARCHS, *timm.list_models()], n=4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown arch {arch!r}: {hint}allowed: {', '.join(ARCHS)} or a name in timm.list_models()")


def _build_timm(arch: str, num_classes: int, pretrained: bool, drop_path: float | None) -> nn.Module:
    import timm  # here, since it takes seconds and the CIFAR networks do without

    check_timm_name(arch)
    try:  # timm leaves out what is None
        return timm.create_model(arch, pretrained=pretrained, num_classes=num_classes, drop_path_rate=drop_path)
    except RuntimeError as error:  # timm's answer to a weights tag it does not know
        raise ValueError(f"timm cannot build {arch!r} with pretrained={pretrained}: {error}") from error
    except TypeError as error:
        if drop_path is None:
            raise
        raise ValueError(f"timm's {arch} does not take drop_path: leave it out ({error})") from error


def published_normalisation(classifier: Classifier) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """(mean, std) with which timm's weights of this network were trained; (None, None) for networks
    that are not timm's.
    """
    published = getattr(classifier.network, "pretrained_cfg", {})
    return published.get("mean"), published.get("std")


def describe(classifier: Classifier) -> dict[str, Any]:
    """JSON-able entries from which `from_description` builds the classifier again: kind, arch,
    num_classes, mean, std.
    """
    return {
        "kind": KIND,
        "arch": classifier.arch,
        "num_classes": classifier.network_classes,
        **classifier.normalisation,
    }
