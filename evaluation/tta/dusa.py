"""DUSA (Li et al., NeurIPS 2024): a class-conditional diffusion model says how well a mixture of
classes explains an image.

    loss = mean_i |e - sum_{k in C_i} p_k(x_i) e_theta(x_t, t, k)|^2                     (eq. 12)
    x_t = sqrt(abar_t) x_i + sqrt(1 - abar_t) e,  p = softmax over C_i of logits / |logits|

at one time step t. C_i are the `best` classes of image i and `random` others, drawn by their
probabilities. Classifier and diffusion model both go down its gradient, all of their parameters.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import Adapting, StepOptions, register, with_constants
from undegrade.models.classification.classifier import Classifier
from undegrade.models.diffusion.denoiser import denoising_target
from undegrade.models.diffusion.loading import load_denoiser
from undegrade.utils.checkpoint import file_digest
from undegrade.utils.data.pixels import unit_to_signed
from undegrade.utils.ranges import Count, PositiveShare, Whole


@dataclasses.dataclass(frozen=True)
class DusaOptions(StepOptions):
    """Keys of `predictor: {name: dusa}`; further keys: see StepOptions. The authors adapt networks
    of ImageNet alone, by Adam with `lr` 1e-5; for small ones there is 1e-4, ours.

    Attributes:
        diffusion: run or file of the class-conditional diffusion model, of the same classes.
        t: time step, as a share of the chain.
        best, random: classes of an image (null: 4 and 2 of ImageNet, else 3 and 1, ours).
        update_diffusion: whether that model learns, too.
    """

    diffusion: str = "diffusion/{dataset}/conditional"
    t: PositiveShare = 0.1
    best: Count | None = None
    random: Whole | None = None
    update_diffusion: bool = True


CONSTANTS = {"optimizer": ("adam",) * 3, "lr": (1e-4, 1e-4, 1e-5), "best": (3, 3, 4), "random": (1, 1, 2)}


class Dusa(Adapting):
    """The score of a diffusion model guides the classifier."""

    def __init__(self, classifier: Classifier, options: DusaOptions, surroundings: Surroundings) -> None:
        super().__init__(classifier, options, surroundings)
        self.own = own = with_constants(options, classifier.num_classes, **CONSTANTS)
        assert own.best is not None and own.random is not None
        path = surroundings.find(own.diffusion)
        denoiser = load_denoiser(path).to(self.device)
        if denoiser.num_classes != classifier.num_classes:
            raise ValueError(
                f"predictor 'dusa': {path} has {denoiser.num_classes or 'no'} classes, the classifier {classifier.num_classes}: "
                "give a class-conditional diffusion model of the same classes (predictor.diffusion)"
            )
        if own.best + own.random > classifier.num_classes:
            raise ValueError(f"predictor 'dusa': best {own.best} and random {own.random} are more than the classes")
        self.files.append(file_digest(path))
        self.networks["denoiser"] = self.denoiser = denoiser.eval().requires_grad_(own.update_diffusion)
        self.use_batch_statistics()
        classifier.network.requires_grad_(True)
        moved = dict(classifier.network.named_parameters())
        if own.update_diffusion:
            moved |= {f"denoiser.{name}": parameter for name, parameter in denoiser.named_parameters()}
        self.step_with(moved, own)

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.look(x)
        classes = self._candidates(logits.detach())
        shares = F.normalize(logits).gather(1, classes).softmax(1)
        count, clean = classes.shape[1], unit_to_signed(x)
        t = torch.full((len(x),), round(self.own.t * self.denoiser.diffusion_steps), device=self.device)
        noise = torch.randn(x.shape).to(x)
        noisy = self.denoiser.schedule().q_sample(clean, t, noise).repeat_interleave(count, 0)
        said, _ = self.denoiser(noisy, t.repeat_interleave(count), classes.flatten())
        mixed = (shares[:, :, None, None, None] * said.unflatten(0, (len(x), count))).sum(1)
        self.descend((mixed - denoising_target(self.denoiser, clean, t, noise)).square().mean())
        return logits

    def _candidates(self, logits: Tensor) -> Tensor:
        """Classes [B, best + random] of each image, all different."""
        assert self.own.best is not None and self.own.random is not None
        best = logits.topk(self.own.best).indices
        if not self.own.random:
            return best
        others = logits.scatter(1, best, -torch.inf).softmax(1).clamp_min(1e-12).scatter(1, best, 0)
        return torch.cat([best, torch.multinomial(others.cpu(), self.own.random).to(best)], 1)


register("dusa", Dusa, DusaOptions, "DUSA: the score of a class-conditional diffusion model guides the classifier")
