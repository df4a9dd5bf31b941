"""One epoch of FusionDistill, loading included: our trainer against the loop of the published
program.

That loop, in float32 and the default layout: one loader for each degradation, which flips, degrades
(`imagedegrade`), pads, crops, normalises and cuts image by image; four teachers, one after the
other on their quarter of the clean images; cross-entropy of all images and the cosine of the third
stage; RAdam. Both ways load in the training process, so that all work counts, and do the same
arithmetic on as many images; each runs in a process of its own, since ours sets the allocator.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.batches import OneByOne
from benchmarks.measure import Apart, Row, Step, in_turn, timed_row
from benchmarks.networks import CLASSES, classifier, forward_work, images
from undegrade.trainers.config import LoopConfig, OptimizerConfig, TrainConfig
from undegrade.trainers.distillation import Distillation, DistillationConfig
from undegrade.trainers.method import Context
from undegrade.trainers.trainer import Trainer
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import AugmentConfig, BatchSet
from undegrade.utils.data.perturbations.degradations import DEGRADATIONS
from undegrade.utils.data.sources.image_source import array_source
from undegrade.utils.data.training import DataConfig
from undegrade.utils.device import keep_freed_memory

SIDE, RATE, DECAY = 32, 1e-3, 1e-4
NAMES = list(DEGRADATIONS)


def reference(arch: str, batch: int, steps: int) -> Step:
    """An epoch of the published loop: `steps` batches of `batch` images under each degradation."""
    student, *teachers = (classifier(arch, seed).network for seed in range(1 + len(NAMES)))
    for teacher in teachers:
        teacher.eval()
    optimizer = torch.optim.RAdam(student.parameters(), RATE, weight_decay=DECAY)
    loaders = [DataLoader(OneByOne(images(steps * batch, SIDE), name), batch, shuffle=True) for name in NAMES]

    def epoch() -> None:
        student.train()
        for parts in zip(*loaders, strict=True):
            label = torch.cat([labels for _, (labels, _) in parts])
            stage, logits = _third_stage(student, torch.cat([degraded for (_, degraded), _ in parts]))
            loss = 0.1 * F.cross_entropy(logits, label)
            for teacher, ((clean, _), _), mine in zip(teachers, parts, stage.split(batch), strict=True):
                with torch.no_grad():
                    target, _ = _third_stage(teacher, clean)
                same = torch.ones(len(clean))
                loss = loss + F.cosine_embedding_loss(mine.flatten(1), target.flatten(1), same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item(), (logits.argmax(1) == label).float().mean().item()  # what it writes at every step

    return epoch


def _third_stage(network: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Map of the third stage and logits."""
    taken: list[Tensor] = []
    with network.get_submodule("res3").register_forward_hook(lambda module, given, out: taken.append(out)):
        logits = network(x)
    return taken[0], logits


def ours(arch: str, batch: int, steps: int, precision: str = "no") -> Step:
    """An epoch of our trainer on as many images."""
    keep_freed_memory()
    pixels = images(steps * batch, SIDE).transpose(0, 3, 1, 2)
    source = array_source("random", pixels, np.arange(len(pixels)) % 10, CLASSES, [str(i) for i in range(len(pixels))])
    context = Context(source, NAMES, TrainConfig("benchmark", data=DataConfig(degradations=NAMES)))
    student, *teachers = (classifier(arch, seed) for seed in range(1 + len(NAMES)))
    method = Distillation(student, teachers, context, DistillationConfig(ce_weight=0.1))
    augment = AugmentConfig(flip=True, crop_padding=4, cutout=16)
    train, validation = (BatchLoader(BatchSet(source, NAMES, batch, 0, how)) for how in (augment, None))
    optimizer = OptimizerConfig("RAdam", lr=RATE, weight_decay=DECAY)
    loop = LoopConfig(epochs=1_000_000, save_every=None, mixed_precision=precision)  # type: ignore[arg-type]
    run = Path(tempfile.gettempdir())  # nothing is written: an epoch writes its checkpoint once, after hundreds of steps
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    trainer = Trainer(method, train, validation, optimizer, loop, accelerator, run, 0)

    def epoch() -> None:
        trainer._train_epoch(tqdm(disable=True))
        trainer.progress.epoch, trainer.progress.batch = trainer.progress.epoch + 1, 0

    return epoch


def rows(quick: bool = False) -> list[Row]:
    """Ours in float32, and with bfloat16 products where the processor has them."""
    arch, batch, steps, repeats = ("ResNet20", 2, 1, 1) if quick else ("ResNet56", 32, 1, 5)
    ways: dict[str, tuple[Any, ...]] = {"reference": (reference, arch, batch, steps), "float32": (ours, arch, batch, steps)}
    if torch.cpu._is_avx512_bf16_supported() and not quick:
        ways["bf16"] = (ours, arch, batch, steps, "bf16")
    with contextlib.ExitStack() as stack:
        parts: dict[str, Step] = {
            name: build(*arguments) if quick else stack.enter_context(Apart(build, *arguments))
            for name, (build, *arguments) in ways.items()
        }
        taken = in_turn(parts, repeats)
    passes = 3 + 1  # student forward and twice as much backward, teachers forward
    work = passes * steps * batch * len(NAMES) * forward_work(classifier(arch).network, SIDE)
    title = f"FusionDistill epoch, {arch}"
    first = timed_row(f"{title}, float32", taken["reference"], taken["float32"], work, required=1.8, note=_NOTE)
    if "bf16" not in taken:
        return [first]
    return [first, timed_row(f"{title}, bf16", taken["reference"], taken["bf16"], required=1.8, note=_BF16)]


_NOTE = "a step of 4 x 32 images; the same arithmetic on both sides"
_BF16 = "loop.mixed_precision bf16 against the reference's float32: results differ by more than rounding"
