"""What paths in the published programs' command lines mean here."""

from __future__ import annotations

import re

_PUBLISHED = re.compile(r"saved/(?P<deg>[^/]+)/(?P<trainer>\w+)/(?P<name>[^/]+)/train(/(?P<run>[^/]+))?(/model_best\.pth)?")
# trainer folder and name of the published FusionDistill code (dataset D) -> run name here
_PUBLISHED_NAMES = (
    (r"IndTrainer/(?P<arch>\w+?)_(?P<D>\w+)_clean", "ind/{D}/{arch}_clean"),
    (r"SLTrainer/(?P<arch>\w+)-\d+_(?P<D>\w+)_soups", "deg_all/{D}/{arch}_soups"),
    (r"SLTrainer/(?P<arch>\w+)-\d+_(?P<D>\w+)", "sl/{D}/{arch}-{arch}/{deg}"),
    (r"SLDA_Trainer/(?P<arch>\w+)-\d+_(?P<D>\w+)", "deg_all/{D}/{arch}-{arch}_fusiondistill"),
    (r"IndDATrainer/(?P<arch>\w+?)_(?P<D>\w+)_deg_(?P<kind>scratch|vanilla)", "deg_all/{D}/{arch}_base_{kind}"),
    (r"IndDATrainer/(?P<arch>\w+?)_(?P<D>\w+)_deg_fused", "deg_all/{D}/{arch}_fused"),
)


def published_run(reference: str) -> str | None:
    """Run name (and id) meant by a path of the published FusionDistill commands, None for anything
    else.

    `saved/combined_deg/SLDA_Trainer/ResNet56-56_CIFAR10/train/<run id>/model_best.pth` is the run
    `deg_all/CIFAR10/ResNet56-ResNet56_fusiondistill/<run id>`; without the run id, or with
    `latest`, the latest finished one.
    """
    path = _PUBLISHED.fullmatch(reference)
    if path is None:
        return None
    for pattern, name in _PUBLISHED_NAMES:
        match = re.fullmatch(pattern, f"{path['trainer']}/{path['name']}")
        if match:
            run = path["run"] if path["run"] not in (None, "latest", "model_best.pth") else ""
            return "/".join(filter(None, [name.format(deg=path["deg"], **match.groupdict()), run]))
    return None


# ensemble configurations of the published DiffAUD and SDA commands -> configuration here
_PUBLISHED_ENSEMBLES = (
    (r"(?P<arch>\w+)_ensemble_b64_(?P<D>\w+)", "{D}/{arch}_diffaud"),
    (r"(?P<arch>resnet50|swinT|swinB|convnextT|convnextB)", "Imagenet/{arch}_sda"),
)


def published_config(path: str) -> str:
    """The configuration here that one of the published DiffAUD and SDA ensemble commands means; any
    other path as it is.

    `configs/ensemble/ResNet50_ensemble_b64_Imagenet.py` is
    `configs/ensemble/Imagenet/ResNet50_diffaud.yaml`, and `eval/configs/ensemble/resnet50.py` is
    `configs/ensemble/Imagenet/ResNet50_sda.yaml`.
    """
    for pattern, name in _PUBLISHED_ENSEMBLES:
        match = re.fullmatch(r"(?:.*/)?configs/ensemble/" + pattern + r"\.py", path)
        if match:
            words = {key: text.replace("resnet50", "ResNet50") for key, text in match.groupdict().items()}
            return f"configs/ensemble/{name.format(**words)}.yaml"
    return path
