"""The training loop: steps, validation, checkpoints, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from undegrade.models.classification.sync_batchnorm import convert
from undegrade.trainers.config import LoopConfig, OptimizerConfig
from undegrade.trainers.means import ImageMeans
from undegrade.trainers.method import Method, check_parts
from undegrade.trainers.parts import Parts
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.batches import Batch, BatchLoader
from undegrade.utils.device import move_batch
from undegrade.utils.errors import Stopped
from undegrade.utils.figures import save
from undegrade.utils.files import replacing
from undegrade.utils.run_log import RunLog
from undegrade.utils.runs import BEST, mark_done
from undegrade.utils.seeding import derive_seed, seed_everything

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Progress:
    """Loop state that a resumed run takes up again."""

    epoch: int = 0  # epochs done
    step: int = 0  # optimiser steps done
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0  # validations since the best


class Trainer:
    """Runs a method on batches of one epoch after the other; saves the best by validation and the
    last for resuming.

    Args:
        method: what is trained, and by which loss.
        train, validation: batch loaders.
        optimizer, loop: their config sections.
        accelerator: devices, processes, precision.
        run: run folder.
        seed: weights are initialised by the caller; this seeds dropout and the like, epoch by
            epoch.

    Raises:
        ValueError: the method trains what it does not name, or names what it does not train; a part
            in `optimizer` that the method does not have.
    """

    def __init__(
        self,
        method: Method,
        train: BatchLoader,
        validation: BatchLoader,
        optimizer: OptimizerConfig,
        loop: LoopConfig,
        accelerator: Accelerator,
        run: Path,
        seed: int,
    ) -> None:
        self.method, self.train_loader, self.validation_loader = method, train, validation
        self.loop, self.accelerator, self.run, self.seed = loop, accelerator, run, seed
        check_parts(method)
        self.kept = {name: getattr(method, name).requires_grad_(False) for name in method.kept}
        if loop.channels_last:
            method.to(memory_format=torch.channels_last)
        method.to(accelerator.device)
        if loop.sync_batchnorm and accelerator.num_processes > 1:
            for part in method.named_parts().values():
                convert(part)
        self.parts = Parts(method, optimizer, loop.ema_decay)
        self.wrapped = accelerator.prepare(method)
        if loop.compile:
            self.wrapped = self._compiled(self.wrapped)
        self.progress = _Progress()

    def fit(self) -> dict[str, float]:
        """Train to the last epoch (or the early stop); returns the metrics of the best validation.

        Raises:
            Stopped: loss is NaN or infinite; names epoch and step.
        """
        self._resume()
        main = self.accelerator.is_main_process
        self.log = RunLog(self.run if main else None, self.progress.epoch)
        bar = tqdm(
            total=self.loop.epochs * len(self.train_loader), initial=self.progress.epoch * len(self.train_loader),
            disable=not main, desc=self.run.parent.name, unit="step", dynamic_ncols=True, mininterval=1.0,
        )  # fmt: skip
        best: dict[str, float] = {}
        with bar:
            if self.loop.epochs == 0:
                best = self.validate()
                self._keep_if_best(0, best)
            while self.progress.epoch < self.loop.epochs and not self._out_of_patience():
                metrics = self._train_epoch(bar)
                epoch = self.progress.epoch + 1
                if epoch % self.loop.validate_every == 0 or epoch == self.loop.epochs:
                    metrics |= self.validate()
                    if self._keep_if_best(epoch, metrics):
                        best = metrics
                self.progress.epoch = epoch
                self.log.write(epoch, self.progress.step, metrics)
                shown = {"loss": "train/loss", **{f"val_{name}": f"validation/{name}" for name in self.method.monitors}}
                bar.set_postfix({name: f"{metrics[key]:.4g}" for name, key in shown.items() if key in metrics})
                self._save_last()
        if main:
            picture = self.method.picture({name: module.eval() for name, module in self.parts.validated.items()})
            if picture is not None:
                save(picture, self.run / "samples.png")
            mark_done(self.run)
        self.log.close()
        self._leave()
        return best or {f"validation/{self.loop.monitor}": float("nan") if self.progress.best is None else self.progress.best}

    def _leave(self) -> None:
        """End the process group, with its threads: a process that ends while one of them lets go of
        a tensor aborts.
        """
        self.accelerator.wait_for_everyone()  # while the first process still writes its run, another's leave may abort
        del self.wrapped  # it holds the group, as the accelerator does
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _train_epoch(self, bar: tqdm) -> dict[str, float]:
        epoch, steps = self.progress.epoch, len(self.train_loader)
        # dropout and drop-path draw from the global stream: seeded here, a resumed epoch draws what
        # the first one drew
        seed_everything(derive_seed(self.seed, "epoch", epoch, self.accelerator.process_index))
        self.wrapped.train()
        sums = ImageMeans(self.accelerator)
        for step, batch in enumerate(self.train_loader.epoch(epoch)):
            rates = self.parts.set_learning_rates(epoch + step / steps, self.loop.epochs)
            # the last batches of an epoch are not kept for the next one, which may begin in another
            # process (a resumed run)
            due = (step + 1) % self.accelerator.gradient_accumulation_steps == 0 or step + 1 == steps
            with contextlib.nullcontext() if due else self.accelerator.no_sync(self.wrapped):
                out = self.wrapped(self.method.prepare(self._prepare(batch), self.seed, epoch, step))
                self._check_finite(out["loss"], epoch, step)
                sums.add(out, len(batch["key"]))
                self.accelerator.backward(out["loss"] * self._share(batch, step))
            if due:
                self._optimizer_step()
            bar.update()
        return self._named("train", {**self.method.summary(sums.means()), **rates})

    @staticmethod
    def _named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
        return {f"{stage}/{name}": value for name, value in metrics.items()}

    def _share(self, batch: Batch, step: int) -> float:
        """Weight of this process's loss: the last step is uneven, and the mean of gradients shall
        be that over images.
        """
        own = int((batch["deg"] == 0).sum())
        return own * self.accelerator.num_processes / self.train_loader.global_images(step)

    def _optimizer_step(self) -> None:
        self.parts.step(self.accelerator.scaler, self.loop.clip_norm)  # Accelerator's own scaling is for one optimiser
        self.progress.step += 1
        with torch.no_grad():
            self.method.after_step(self.progress.step)

    def _check_finite(self, loss: Tensor, epoch: int, step: int) -> None:
        if not torch.isfinite(loss):
            raise Stopped(
                f"loss is {loss.item()} at epoch {epoch + 1}, step {step + 1} of {len(self.train_loader)}: stopped before that "
                f"step. The best and the last good checkpoint stay in {self.run}; {self._mend()}"
            )

    def _mend(self) -> str:
        """Against numbers that are not finite."""
        rates = ", ".join(f"{config.lr}" for config in self.parts.configs.values())
        return f"lower optimizer.lr (now {rates}) or set loop.clip_norm"

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means of the method's metrics over the validation images; of the moving averages if there
        are any.
        """
        self.wrapped.eval()
        sums = ImageMeans(self.accelerator)
        for name, module in self.parts.validated.items():
            setattr(self.method, name, module.eval())
        try:
            for batch in self.validation_loader.epoch(0):
                if batch["key"]:  # a process can be left without images in the last step
                    sums.add(self.method(self._prepare(batch)), len(batch["key"]))
        finally:
            for name, part in self.parts.modules.items():
                setattr(self.method, name, part)
        return self._named("validation", self.method.summary(sums.means()))

    def _prepare(self, batch: Batch) -> Batch:
        batch = move_batch(batch, self.accelerator.device)
        if self.loop.channels_last:
            for view in ("clean", "degraded"):
                batch[view] = batch[view].contiguous(memory_format=torch.channels_last)
        return batch

    def _keep_if_best(self, epoch: int, metrics: dict[str, float]) -> bool:
        value, state = metrics[f"validation/{self.loop.monitor}"], self.progress
        if math.isnan(value):
            raise Stopped(
                f"validation {self.loop.monitor} is {value} after epoch {epoch}: stopped. The best and the last good checkpoint "
                f"stay in {self.run}; {self._mend()}"
            )
        sign = 1 if self.method.monitors[self.loop.monitor] == "max" else -1
        if state.best is not None and sign * value < sign * state.best:
            state.stale += 1
            return False
        state.best, state.best_epoch, state.stale = value, epoch, 0
        if self.accelerator.is_main_process:
            weights, description = self.method.export(self.parts.validated)
            save_checkpoint(self.run / BEST, weights, {**description, "epoch": epoch, self.loop.monitor: round(value, 6)})
        return True

    def _out_of_patience(self) -> bool:
        return self.loop.patience is not None and self.progress.stale >= self.loop.patience

    def _compiled(self, module: nn.Module) -> nn.Module:
        torch._dynamo.config.suppress_errors = True  # what fails to compile at the first batch runs as it is, with a warning
        try:
            return torch.compile(module)  # type: ignore[return-value]
        except RuntimeError as error:
            log.warning("torch.compile is not possible here (%s); going on without it", error)
            return module

    def _stateful(self) -> dict[str, Mapping[str, Any]]:
        return {**self.parts.stateful, "kept": self.kept}

    def _save_last(self) -> None:
        """Everything that the next epoch depends on, written atomically."""
        if not self.accelerator.is_main_process:
            return
        state = {
            **{group: {name: o.state_dict() for name, o in members.items()} for group, members in self._stateful().items()},
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }
        with replacing(self.run / "last" / "state.pt") as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def _resume(self) -> None:
        path = self.run / "last" / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        for group, members in self._stateful().items():
            for name, member in members.items():
                member.load_state_dict(state[group][name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = _Progress(**state["progress"])
        log.info("resuming %s after epoch %d of %d", self.run, self.progress.epoch, self.loop.epochs)
