"""BatchNorm over two processes against a plain BatchNorm on the images of both."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from undegrade.models.classification.sync_batchnorm import convert

CHANNELS = 3
STEPS = 2  # so that running statistics are averaged over time too


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer, how many images each process has, and how the images look."""

    kind: type[nn.Module] = nn.BatchNorm2d
    images: tuple[int, int] = (4, 4)
    shape: tuple[int, ...] = (5, 5)
    options: dict = dataclasses.field(default_factory=dict)
    offset: float = 0.0
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-5

    def layer(self) -> nn.Module:
        layer = self.kind(CHANNELS, **self.options)
        for i, parameter in enumerate(layer.parameters()):
            nn.init.normal_(parameter, 1.0 - i, 0.5, generator=torch.Generator().manual_seed(i))
        return layer

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """The images of both processes, and the gradient at the layer's output."""
        generator = torch.Generator().manual_seed(step)
        x, gradient = torch.randn(2, sum(self.images), CHANNELS, *self.shape, generator=generator)
        level = torch.arange(sum(self.images)).view(-1, *[1] * (x.ndim - 1))  # the second process has the brighter images
        return (x + level + self.offset).to(self.dtype), gradient.to(self.dtype)


CASES = {
    "even": Case(),
    "uneven": Case(images=(5, 2)),
    "one image in each, one value a channel": Case(nn.BatchNorm1d, (1, 1), ()),
    "sequences": Case(nn.BatchNorm1d, (3, 1), (7,)),
    "volumes": Case(nn.BatchNorm3d, (1, 2), (2, 3, 2)),
    "without weights": Case(images=(3, 2), options={"affine": False}),
    "without running statistics": Case(images=(3, 2), options={"track_running_stats": False}),
    "cumulative average": Case(images=(3, 2), options={"momentum": None}),
    "mean far from zero": Case(images=(6, 3), offset=500.0, tolerance=2e-4),  # the inputs' rounding alone is 3e-5
    "bfloat16": Case(images=(6, 3), dtype=torch.bfloat16, tolerance=2e-2),  # 8 bits of mantissa
}


def measure(layer: nn.Module, case: Case, part: slice) -> dict[str, Any]:
    """What `layer` makes of a part of the images of each step."""
    found: dict[str, Any] = {}
    for step in range(STEPS):
        x, gradient = (t[part] for t in case.step(step))
        x.requires_grad_()
        y = layer(x)
        y.backward(gradient)
        found |= {f"output {step}": y.detach(), f"gradient {step}": x.grad}
    found |= {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}
    return found | {f"buffer {name}": b for name, b in layer.named_buffers()}


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, case in CASES.items():
        start, end = (0, case.images[0]) if rank == 0 else (case.images[0], sum(case.images))
        found[name] = measure(convert(case.layer()), case, slice(start, end))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """case -> what was found, of each process."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_process, (folder,), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("name", CASES)
def test_two_processes_see_the_statistics_of_the_whole_batch(two_processes: tuple[dict, dict], name: str) -> None:
    case = CASES[name]
    whole = measure(case.layer(), case, slice(None))
    first, second = (found[name] for found in two_processes)
    assert whole.keys() == first.keys() == second.keys()
    for what, expected in whole.items():
        if what.startswith("gradient of"):
            found = first[what] + second[what]  # each process has its own images' part, which DDP adds up
        elif what.startswith("buffer"):
            assert torch.equal(first[what], second[what])
            found = first[what]
        else:
            found = torch.cat([first[what], second[what]])
        assert found.dtype == expected.dtype
        # statistics and weights are float32 also where the images are bfloat16
        tolerance = min(case.tolerance, 2e-4) if what.startswith("buffer") else case.tolerance
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * max(1.0, expected.abs().max().item()))


def test_statistics_of_one_process_alone_would_differ() -> None:
    """The comparison above can fail."""
    case = CASES["uneven"]
    whole, own = (measure(case.layer(), case, part) for part in (slice(None), slice(0, case.images[0])))
    assert (whole["output 0"][: case.images[0]] - own["output 0"]).abs().max() > 0.1
    assert (whole["buffer running_var"] - own["buffer running_var"]).abs().max() > 0.1


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_layer_of_timm_keeps_its_activation() -> None:
    from timm.layers import BatchNormAct2d

    case = Case(BatchNormAct2d)
    plain, synchronised = (measure(layer, case, slice(None)) for layer in (case.layer(), convert(case.layer())))
    for what, expected in plain.items():
        torch.testing.assert_close(synchronised[what], expected, rtol=1e-5, atol=1e-5)
    assert plain["output 0"].min() == 0  # the activation is a ReLU


@pytest.mark.usefixtures("alone")
def test_memory_format_is_kept() -> None:
    layer = convert(nn.BatchNorm2d(CHANNELS))
    x = torch.randn(2, CHANNELS, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("alone")
def test_input_of_another_number_of_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        convert(nn.BatchNorm2d(CHANNELS))(torch.zeros(2, CHANNELS))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), nn.InstanceNorm2d(4))


def test_conversion_keeps_parameters_names_and_whatever_is_no_batchnorm() -> None:
    plain = network()
    before, types = plain.state_dict(keep_vars=True), [type(m) for m in plain.modules()]
    assert convert(plain) is plain
    after = plain.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    changed = [m for m, kind in zip(plain.modules(), types, strict=True) if type(m) is not kind]
    assert changed == [plain.get_submodule("1"), plain.get_submodule("2.1")] and all(isinstance(m, nn.BatchNorm2d) for m in changed)
    network().load_state_dict(plain.state_dict())
    kinds = [type(m) for m in plain.modules()]
    assert [type(m) for m in convert(plain).modules()] == kinds  # a second time nothing is left to do


def test_converted_layer_and_its_copy_need_no_processes_in_eval_mode() -> None:
    plain = network()
    x = torch.randn(4, 3, 5, 5)
    plain(x)
    expected = plain.eval()(x)
    assert torch.equal(convert(plain)(x), expected)
    assert torch.equal(copy.deepcopy(plain)(x), expected)


def test_unknown_batchnorm_is_named_and_nothing_converted() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    module = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(Odd(4)))
    with pytest.raises(ValueError, match=r"layer '1\.0' is a Odd.*allowed: BatchNorm1d.*set loop.sync_batchnorm to false"):
        convert(module)
    assert type(next(module.children())) is nn.BatchNorm2d
