"""Finished runs of networks with random weights, as if training had made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tests.editing import tiny_editor, tiny_vae
from undegrade.models.classification.classifier import build_classifier, describe
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.models.diffusion.denoiser import describe as describe_denoiser
from undegrade.models.diffusion.editor_loading import describe_editor, editor_state
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.config import Tree, dump_yaml
from undegrade.utils.data.sources.image_source import ImageSource
from undegrade.utils.runs import BEST, create_run, mark_done
from undegrade.utils.seeding import seed_everything

DIGITS = tuple(str(digit) for digit in range(10))


def save_random(path: Path, seed: int = 0, arch: str = "ResNet20", classes: tuple[str, ...] = DIGITS, **facts: object) -> Path:
    """A checkpoint; `facts` go to its description."""
    seed_everything(seed)
    network = build_classifier(arch, len(classes), (0.5,) * 3, (0.25,) * 3)
    save_checkpoint(path, network.network.state_dict(), {**describe(network), "classes": list(classes), **facts})
    return path


def finished_run(root: Path, name: str, run_id: str = "one", config: Tree | None = None, **options: Any) -> Path:
    """The checkpoint of a new finished run; `options` are those of `save_random`."""
    run = create_run(root, name, run_id)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_yaml(config or {}))
    save_random(run / BEST, **options)
    mark_done(run)
    return run / BEST


def specialists(root: Path, *degradations: str, **options: Any) -> dict[str, Path]:
    """A run for each degradation, `sl/Digits/ResNet20-ResNet20/<degradation>`, each with its own
    weights.
    """
    name = "sl/Digits/ResNet20-ResNet20"
    return {
        deg: finished_run(root, f"{name}/{deg}", seed=seed, degradations=[deg], **{"initial_weights": "the clean one", **options})
        for seed, deg in enumerate(degradations)
    }


class Parents:
    """A root of runs in which every run that is asked for holds a fresh network."""

    def __init__(self, root: Path, source: ImageSource) -> None:
        self.root, self.source = root, source

    def make(self, name: str, arch: str) -> None:
        network = build_classifier(arch, 10, self.source.rgb_mean, self.source.rgb_std)
        self._save(name, network.network, {**describe(network), "classes": list(self.source.classes)})

    def make_denoiser(self, name: str, model: Tree) -> None:
        options = {key: value for key, value in model.items() if key not in ("class_conditional", "init_from")}
        denoiser = build_denoiser(self.source.image_size, **options)
        self._save(name, denoiser.unet, describe_denoiser(denoiser))

    def make_autoencoder(self, name: str) -> None:
        vae = tiny_vae()
        self._save(name, vae, {"kind": "autoencoder", "vae": dict(vae.config)})

    def make_editor(self, name: str) -> None:
        editor = tiny_editor()
        save_checkpoint(self.root / name / "best.safetensors", editor_state(editor), describe_editor(editor))

    def _save(self, name: str, network: nn.Module, meta: Tree) -> None:
        assert "{" not in name and not name.startswith("/")
        save_checkpoint(self.root / name / "best.safetensors", network.state_dict(), meta)
