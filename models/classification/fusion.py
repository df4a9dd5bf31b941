"""Weight fusion: one network whose parameters are the mean of several.

Sources: model soups (Wortsman et al. 2022), FusionDistill (WACVW 2024) step 3.

The parameters of specialists that come from one parent can be averaged; the activation statistics
that BatchNorm stores belong to the network that measured them. What to do with these is therefore a
policy of its own:

    recalibrate   measure them again with the fused network on given images (the right way; needs
    those images) average       average them like parameters copy_first    keep those of the first
    network (what the FusionDistill reference does)
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from undegrade.models.classification.classifier import Classifier
from undegrade.utils.choices import check_choice

StateDict = Mapping[str, Tensor]

BUFFER_POLICIES = ("recalibrate", "average", "copy_first")
_BATCHNORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def average(
    state_dicts: Sequence[StateDict],
    weights: Sequence[float] | None = None,
    buffers: str = "recalibrate",
    network: nn.Module | None = None,
    loader: Iterable[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weighted arithmetic mean of state dicts, computed in float64 and cast back to each entry's
    type.

    Integer entries: BatchNorm's `num_batches_tracked` becomes the weighted mean rounded to an
    integer; any other one must be equal in all state dicts. Nothing that is handed in changes; the
    returned tensors are new.

    Args:
        state_dicts: one or more, of equal names and shapes. Results lie on the devices of the
            first.
        weights: one per state dict, not negative, sum 1. None: all equal.
        buffers: policy for the BatchNorm statistics, see the module's text.
        network: for `recalibrate`: a `Classifier` (`loader` then gives images in [0,1]) whose inner
            network has the names of the state dicts, or a bare network of these names (`loader`
            then gives what it takes). A copy carries the weights.
        loader: for `recalibrate`: image batches [B,3,H,W], of one size and from the mixture the
            fused network shall serve.

    Raises:
        ValueError: no state dict, differing names or shapes, unfit weights, unknown policy,
            `network` or `loader` missing for `recalibrate` or given for another policy.
    """
    check_choice(buffers, BUFFER_POLICIES, "BatchNorm buffer policy")
    if not state_dicts:
        raise ValueError("no state dict to average: give at least one")
    given = [name for name, value in (("network", network), ("loader", loader)) if value is not None]
    if len(given) != (2 if buffers == "recalibrate" else 0):
        raise ValueError(
            "buffers='recalibrate' needs both network= (carries the fused weights) and loader= (images to measure on), "
            f"the other policies neither; got buffers={buffers!r} with {' and '.join(given) or 'neither'}. "
            "Without images choose buffers='average' or 'copy_first'"
        )
    for index, state in enumerate(state_dicts[1:], start=1):
        _check_entries(state_dicts[0], state, f"state dict {index}")
    shares = _checked_weights(weights, len(state_dicts))
    fused = {
        name: first.detach().clone()
        if buffers == "copy_first" and _is_batchnorm_buffer(name)
        else _mean(name, [state[name] for state in state_dicts], shares)
        for name, first in state_dicts[0].items()
    }
    if network is None or loader is None:
        return fused
    return _recalibrated(fused, network, loader)


def greedy_soup(
    count: int, fuse: Callable[[list[int]], dict[str, Tensor]], accuracy: Callable[[dict[str, Tensor]], float]
) -> tuple[list[int], dict[str, Tensor]]:
    """Greedy soup (Wortsman et al. 2022, recipe 1): from the best on, keep each network that does
    not make the average worse.

    Args:
        count: number of networks N.
        fuse: indices of networks -> their average (of one: that network).
        accuracy: of an average, on held-out images.

    Returns:
        (indices that were kept, best first; their average).

    Raises:
        ValueError: no network.
    """
    if count < 1:
        raise ValueError("no state dict to average: give at least one")
    alone = [accuracy(fuse([i])) for i in range(count)]
    first, *others = sorted(range(count), key=lambda i: -alone[i])  # of equals the earlier
    kept, best, soup = [first], alone[first], fuse([first])
    for index in others:
        candidate = fuse([*kept, index])
        value = accuracy(candidate)
        if value >= best:
            kept, best, soup = [*kept, index], value, candidate
    return kept, soup


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the running statistics of every BatchNorm layer of `network` anew, in place.

    Each layer's mean and (unbiased) variance become the plain average of those of the batches: a
    cumulative average, momentum None. Every batch counts the same, so give batches of one size.
    Only the BatchNorm layers are in training mode meanwhile (dropout stays off); modes and momenta
    are as before afterwards, also after an error.

    Args:
        network: any module; without BatchNorm layers that keep statistics nothing happens and
            nothing is read.
        batches: inputs of `network`, moved to the device of its first BatchNorm layer.

    Raises:
        ValueError: there is no batch (the statistics are then untouched).
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return
    device = next(layers[0].buffers()).device
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("no batch of images to recalibrate BatchNorm on: give at least one")
    modes = {module: module.training for module in network.modules()}
    momenta = [layer.momentum for layer in layers]
    try:
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for batch in itertools.chain([first], iterator):
            network(batch.to(device))
    finally:
        for module, training in modes.items():
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _recalibrated(fused: dict[str, Tensor], network: nn.Module, loader: Iterable[Tensor]) -> dict[str, Tensor]:
    carrier = copy.deepcopy(network)
    bare = carrier.network if isinstance(carrier, Classifier) else carrier
    _check_entries(bare.state_dict(), fused, "the averaged state dict, compared with network=,")
    bare.load_state_dict(fused)
    recalibrate(carrier, loader)
    measured = bare.state_dict()
    return {name: measured[name].to(old.device, old.dtype).clone() for name, old in fused.items()}


def _is_batchnorm_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in _BATCHNORM_BUFFERS


def _mean(name: str, tensors: list[Tensor], shares: list[float]) -> Tensor:
    first = tensors[0].detach()
    if not first.is_floating_point() and not _is_batchnorm_buffer(name):
        if any(not torch.equal(first, other.to(first.device)) for other in tensors[1:]):
            raise ValueError(f"entry {name!r} is of type {first.dtype} and differs between the state dicts: it has no mean")
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += share * tensor.detach().to(first.device, torch.float64)
    return (total if first.is_floating_point() else total.round()).to(first.dtype)


def _check_entries(reference: StateDict, other: StateDict, what: str) -> None:
    differing = [name for name in [*reference, *other] if (name in reference) != (name in other)]
    if differing:
        raise ValueError(
            f"{what} has other entries than the first: {len(differing)} are in only one of the two, e.g. "
            f"{', '.join(differing[:3])}; only networks of one architecture can be averaged"
        )
    for name, tensor in reference.items():
        if tensor.shape != other[name].shape:
            raise ValueError(
                f"{what} has shape {list(other[name].shape)} for {name!r}, the first has {list(tensor.shape)}; only "
                "networks of one architecture and number of classes can be averaged"
            )


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} state dicts: give one each")
    if not all(weight >= 0 for weight in weights):
        raise ValueError(f"weights must not be negative, got {list(weights)}")
    if not abs(sum(weights) - 1.0) <= 1e-6:
        raise ValueError(f"weights must sum to 1, {list(weights)} sum to {sum(weights):g}: divide each by the sum")
    return list(weights)
