"""The training loop: steps, validation, checkpoints, resuming."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
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
from undegrade.trainers.pauses import STOP, Pauses
from undegrade.trainers.processes import largest
from undegrade.trainers.state import Progress, RunState
from undegrade.trainers.trackers import Trackers
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.batch_loader import BatchLoader
from undegrade.utils.data.batches import Batch
from undegrade.utils.device import move_batch
from undegrade.utils.errors import Stopped
from undegrade.utils.figures import save
from undegrade.utils.interruption import Interrupted
from undegrade.utils.progress import progress_bar
from undegrade.utils.run_log import RunLog
from undegrade.utils.runs import BEST, DONE, mark_done
from undegrade.utils.seeding import derive_seed, seed_everything

log = logging.getLogger(__name__)

VIEWS = {"clean", "degraded", "adapted"}  # of a batch
_ASKED = 4  # batches of validation between two questions whether to stop


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
        pauses: when to save between the ends of epochs, and when to stop (None: never).
        origin: further entries for the description of the best checkpoint.
        tracked: optimiser steps that are done -> the run's trackers, started (None: none).

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
        pauses: Pauses | None = None,
        origin: Mapping[str, Any] | None = None,
        tracked: Callable[[int], Trackers] | None = None,
    ) -> None:
        self.method, self.train_loader, self.validation_loader = method, train, validation
        self.loop, self.accelerator, self.run, self.seed = loop, accelerator, run, seed
        self.pauses, self.origin, self.tracked = pauses or Pauses(), origin or {}, tracked
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
        self.state = RunState(run, {**self.parts.stateful, "kept": self.kept}, len(train), accelerator)
        self.means = ImageMeans(accelerator)  # of the epoch so far

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.state.progress

    def fit(self) -> dict[str, float]:
        """Train to the last epoch (or the early stop); returns the metrics of the best validation.

        Raises:
            Stopped: a number is NaN or infinite; names the place. Nothing of that is saved.
            Interrupted: it was asked for; the state is saved.
        """
        main, steps = self.accelerator.is_main_process, len(self.train_loader)
        own = self.state.load()
        if main and self.progress != Progress():
            log.info("resuming %s %s", self.run, self.progress.words(self.loop.epochs, steps))
        finished = (self.run / DONE).is_file() and not self._is_work_left()
        self.log = RunLog(self.run if main else None, self.progress.epoch)
        self.trackers = None if self.tracked is None or finished else self.tracked(self.progress.step)
        bar = progress_bar(
            total=self.loop.epochs * steps, initial=self.progress.epoch * steps + self.progress.batch, disable=not main,
            desc=self.run.parent.name, unit="step",
        )  # fmt: skip
        best: dict[str, float] = {}
        if main and not finished:
            (self.run / DONE).unlink(missing_ok=True)  # of fewer epochs
        try:
            with bar:
                if self.loop.epochs == 0:
                    best = self.validate()
                    self._keep_if_best(0, best)
                while self._is_work_left():
                    best = self._epoch(bar, own) or best
                    own = None
        except Interrupted:
            self._leave()
            raise
        if main and not finished:
            picture = self.method.picture({name: module.eval() for name, module in self.parts.validated.items()})
            if picture is not None:
                save(picture, self.run / "samples.png")
            mark_done(self.run)
        self._leave()
        return best or {f"validation/{self.loop.monitor}": float("nan") if self.progress.best is None else self.progress.best}

    def _is_work_left(self) -> bool:
        patience = self.loop.patience
        return self.progress.epoch < self.loop.epochs and (patience is None or self.progress.stale < patience)

    def _leave(self) -> None:
        """End the process group, with its threads: a process that ends while one of them lets go of
        a tensor aborts.
        """
        self.log.close()
        self.accelerator.wait_for_everyone()  # while the first process still writes its run, another's leave may abort
        del self.wrapped  # it holds the group, as the accelerator does
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _epoch(self, bar: tqdm, own: Mapping[str, Any] | None) -> dict[str, float]:
        """Train, validate, keep, save; returns the metrics if they are the best."""
        metrics, better = self._train_epoch(bar, own), False
        self._check_state()
        epoch = self.progress.epoch + 1
        if epoch % self.loop.validate_every == 0 or epoch == self.loop.epochs:
            metrics |= self.validate()
            better = self._keep_if_best(epoch, metrics)
        self.progress.epoch, self.progress.batch = epoch, 0
        self.log.write(epoch, self.progress.step, metrics)
        if self.trackers is not None:
            self.trackers.write(self.progress.step, metrics)
        shown = {"loss": "train/loss", **{f"val_{name}": f"validation/{name}" for name in self.method.monitors}}
        bar.set_postfix({name: f"{metrics[key]:.4g}" for name, key in shown.items() if key in metrics})
        self._save()
        return metrics if better else {}

    def _train_epoch(self, bar: tqdm, own: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Train on the batches of an epoch that are not done; `own`: where the epoch stopped."""
        state, steps = self.progress, len(self.train_loader)
        epoch, start = state.epoch, state.batch
        # dropout and drop-path draw from the global stream: seeded here, a resumed epoch draws what
        # the first one drew
        seed_everything(derive_seed(self.seed, "epoch", epoch, self.accelerator.process_index))
        self.wrapped.train()
        torch.empty((), dtype=torch.int64).random_()  # of the stream, what loaders once took: published numbers stay as they are
        self.means = ImageMeans(self.accelerator)
        if own is not None:
            self.state.resume_epoch(own, self.means)
        rates = self.parts.set_learning_rates(epoch + max(0, start - 1) / steps, self.loop.epochs)
        for step, batch in enumerate(self.train_loader.epoch(epoch, start), start):
            rates = self.parts.set_learning_rates(epoch + step / steps, self.loop.epochs)
            # the last batches of an epoch are not kept for the next one, which may begin in another
            # process (a resumed run)
            due = (step + 1) % self.accelerator.gradient_accumulation_steps == 0 or step + 1 == steps
            with contextlib.nullcontext() if due else self.accelerator.no_sync(self.wrapped):
                out = self.wrapped(self.method.prepare(self._prepare(batch), self.seed, epoch, step))
                wish = self._checked(out["loss"], epoch, step)
                self.means.add(out, len(batch["key"]))
                self.accelerator.backward(out["loss"] * self._share(batch, step))
            bar.update()
            if due:
                self._optimizer_step()
                state.batch = step + 1
                if wish:
                    self._pause(wish)
        return self._named("train", {**self.method.summary(self.means.means()), **rates})

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

    def _checked(self, loss: Tensor, epoch: int, step: int) -> int:
        """What all processes are to do after this step (see `Pauses`), if its loss is finite in all
        of them; told in one message.
        """
        broken, wish = largest(self.accelerator, ~torch.isfinite(loss.detach()), self.pauses.wish(self.progress.step + 1))
        if broken:
            value = "not finite in another process" if torch.isfinite(loss) else loss.item()
            place = f"epoch {epoch + 1}, step {step + 1} of {len(self.train_loader)}"
            raise Stopped(f"loss is {value} at {place}: stopped before that step. {self._mend()}")
        return int(wish)

    def _check_state(self) -> None:
        """Raise Stopped unless all numbers of the run are finite, in all processes."""
        place = self.state.not_finite()
        (broken,) = largest(self.accelerator, place is not None)
        if broken:
            when = self.progress.words(self.loop.epochs, len(self.train_loader))
            raise Stopped(f"{place or 'a tensor of another process'} is not finite {when}: stopped, and not saved. {self._mend()}")

    def _save(self) -> None:
        self.state.save(self.means)
        self.pauses.saved()

    def _pause(self, wish: int) -> None:
        """Save, and end if that is the wish."""
        self._check_state()
        self._save()
        if wish == STOP:
            reason = self.pauses.interruption.reason or "another process was asked to stop"
            raise Interrupted(f"{reason}; {self.run} is saved {self.progress.words(self.loop.epochs, len(self.train_loader))}")

    def _mend(self) -> str:
        """Against numbers that are not finite."""
        rates = ", ".join(f"{config.lr}" for config in self.parts.configs.values())
        return f"The best and the last good checkpoint stay in {self.run}; lower optimizer.lr (now {rates}) or set loop.clip_norm"

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
            for index, batch in enumerate(self.validation_loader.epoch(0)):
                if batch["key"]:  # a process can be left without images in the last step
                    sums.add(self.method(self._prepare(batch)), len(batch["key"]))
                if (index + 1) % _ASKED == 0 and STOP in largest(self.accelerator, self.pauses.wish(0)):
                    self._pause(STOP)
        finally:
            for name, part in self.parts.modules.items():
                setattr(self.method, name, part)
        return self._named("validation", self.method.summary(sums.means()))

    def _prepare(self, batch: Batch) -> Batch:
        batch = move_batch(batch, self.accelerator.device)
        if self.loop.channels_last:
            for view in VIEWS & batch.keys():
                batch[view] = batch[view].contiguous(memory_format=torch.channels_last)
        return batch

    def _keep_if_best(self, epoch: int, metrics: dict[str, float]) -> bool:
        value, state = metrics[f"validation/{self.loop.monitor}"], self.progress
        if not math.isfinite(value):
            raise Stopped(f"validation {self.loop.monitor} is {value} after epoch {epoch}: stopped. {self._mend()}")
        sign = 1 if self.method.monitors[self.loop.monitor] == "max" else -1
        if state.best is not None and sign * value < sign * state.best:
            state.stale += 1
            return False
        state.best, state.best_epoch, state.stale = value, epoch, 0
        if self.accelerator.is_main_process:
            weights, description = self.method.export(self.parts.validated)
            facts = {"epoch": epoch, self.loop.monitor: round(value, 6)}
            save_checkpoint(self.run / BEST, weights, {**description, **self.origin, **facts})
        return True

    def _compiled(self, module: nn.Module) -> nn.Module:
        torch._dynamo.config.suppress_errors = True  # what fails to compile at the first batch runs as it is, with a warning
        try:
            return torch.compile(module)  # type: ignore[return-value]
        except RuntimeError as error:
            log.warning("torch.compile is not possible here (%s); going on without it", error)
            return module
