"""The training loop: steps, validation, checkpoints, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from undegrade.models.classification.sync_batchnorm import convert
from undegrade.trainers.config import LoopConfig, OptimizerConfig
from undegrade.trainers.method import Method
from undegrade.trainers.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
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
        method: student and loss.
        train, validation: batch loaders.
        optimizer, loop: their config sections.
        accelerator: devices, processes, precision.
        run: run folder.
        seed: weights are initialised by the caller; this seeds dropout and the like, epoch by
            epoch.
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
        self.optimizer_config, self.loop = optimizer, loop
        self.accelerator, self.run, self.seed = accelerator, run, seed
        if loop.channels_last:
            method.to(memory_format=torch.channels_last)
        method.to(accelerator.device)
        if loop.sync_batchnorm and accelerator.num_processes > 1:
            convert(method.student)
        self.optimizer = build_optimizer(optimizer, method.student)
        self.wrapped, self.optimizer = accelerator.prepare(method, self.optimizer)
        if loop.compile:
            self.wrapped = self._compiled(self.wrapped)
        self.ema = None
        if loop.ema_decay is not None:
            self.ema = AveragedModel(method.student, multi_avg_fn=get_ema_multi_avg_fn(loop.ema_decay), use_buffers=True)
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
                shown = {k.split("/")[-1] if k.startswith("train") else "val_" + k.split("/")[-1]: v for k, v in metrics.items()}
                bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items() if k in ("loss", "val_loss", "val_accuracy")})
                self._save_last()
        if main:
            picture = self.method.picture(self._validated().eval())
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
        sums = _Sums(self.accelerator)
        for step, batch in enumerate(self.train_loader.epoch(epoch)):
            factor = learning_rate_factor(self.optimizer_config, epoch + step / steps, self.loop.epochs)
            set_learning_rate(self.optimizer, self.optimizer_config.lr * factor)
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
        return {**sums.means("train"), "train/lr": self.optimizer_config.lr * factor}

    def _share(self, batch: Batch, step: int) -> float:
        """Weight of this process's loss: the last step is uneven, and the mean of gradients shall
        be that over images.
        """
        own = int((batch["deg"] == 0).sum())
        return own * self.accelerator.num_processes / self.train_loader.global_images(step)

    def _optimizer_step(self) -> None:
        if self.loop.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.method.student.parameters(), self.loop.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        if self.ema is not None:
            self.ema.update_parameters(self.method.student)

    def _check_finite(self, loss: Tensor, epoch: int, step: int) -> None:
        if not torch.isfinite(loss):
            raise Stopped(
                f"loss is {loss.item()} at epoch {epoch + 1}, step {step + 1} of {len(self.train_loader)}: stopped before that "
                f"step. The best and the last good checkpoint stay in {self.run}; lower optimizer.lr (now "
                f"{self.optimizer_config.lr}) or set loop.clip_norm"
            )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss (and accuracy) over the validation batches, weighted by image; with the moving
        average if there is one.
        """
        self.wrapped.eval()
        own, sums = self.method.student, _Sums(self.accelerator)
        self.method.student = self._validated().eval()
        try:
            for batch in self.validation_loader.epoch(0):
                if batch["key"]:  # a process can be left without images in the last step
                    sums.add(self.method(self._prepare(batch)), len(batch["key"]))
        finally:
            self.method.student = own
        return sums.means("validation")

    def _validated(self) -> nn.Module:
        """The network that is validated and saved: the moving average if there is one."""
        return self.method.student if self.ema is None else self.ema.module

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
                f"stay in {self.run}; lower optimizer.lr (now {self.optimizer_config.lr}) or set loop.clip_norm"
            )
        sign = 1 if self.loop.monitor == "accuracy" else -1
        if state.best is not None and sign * value < sign * state.best:
            state.stale += 1
            return False
        state.best, state.best_epoch, state.stale = value, epoch, 0
        if self.accelerator.is_main_process:
            weights, description = self.method.checkpoint(self._validated())
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

    def _save_last(self) -> None:
        """Everything that the next epoch depends on, written atomically."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "student": self.method.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }
        with replacing(self.run / "last" / "state.pt") as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def _resume(self) -> None:
        path = self.run / "last" / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.method.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = _Progress(**state["progress"])
        log.info("resuming %s after epoch %d of %d", self.run, self.progress.epoch, self.loop.epochs)


class _Sums:
    """Sums of metrics over images and processes; the means are exact whatever the batch sizes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.images = accelerator, 0
        self.totals: dict[str, Tensor] = {}

    def add(self, out: dict[str, Tensor], images: int) -> None:
        self.images += images
        for name, value in out.items():
            total = value.detach().double().sum() if name == "hits" else value.detach().double() * images
            self.totals[name] = self.totals[name] + total if name in self.totals else total

    def means(self, stage: str) -> dict[str, float]:
        names = sorted(self.totals)
        images = torch.tensor(self.images, dtype=torch.float64, device=self.accelerator.device)
        *sums, count = self.accelerator.reduce(torch.stack([*(self.totals[n] for n in names), images])).tolist()
        return {f"{stage}/{'accuracy' if n == 'hits' else n}": s / count for n, s in zip(names, sums, strict=True)}
