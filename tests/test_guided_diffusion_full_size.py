"""The 256 px network at its full size (553 million random parameters): answer, and memory and time
of loading.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.scripts import launch

pytestmark = pytest.mark.slow

_WRITE = """
import sys
import torch
from benchmarks.networks import published_unet, randomised
from tests.openai_networks import ADM_256
network = randomised(published_unet(ADM_256)).requires_grad_(False)
x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(7))
torch.save(network.state_dict(), sys.argv[1] + "/model.pt")
torch.save(network(x, torch.tensor([494])), sys.argv[1] + "/answer.pt")
"""

_READ = """
import json, resource, sys, time
import torch
from diffusers import UNet2DModel
from undegrade.models.diffusion.loading import open_denoiser
from tests.openai_networks import ADM_256, joined, relative_error, texts

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, start = peak(), time.perf_counter()
denoiser = open_denoiser(sys.argv[1] + "/" + sys.argv[2], texts(vars(ADM_256)))
loaded = time.perf_counter() - start
checksum = sum(p.double().sum().item() for p in denoiser.parameters())  # every page of the weights is read
after = peak()
x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(7))
error = relative_error(joined(denoiser)(x, torch.tensor([494])), torch.load(sys.argv[1] + "/answer.pt"))
weights = sum(p.numel() for p in denoiser.parameters()) * 4 / 2**20
print(json.dumps({"before": before, "after": after, "weights": weights, "seconds": loaded, "error": error}))
"""


def test_full_size_network_takes_one_copy_of_its_weights_and_answers_the_same(tmp_path: Path) -> None:
    launch(sys.executable, "-c", _WRITE, tmp_path, timeout=900).check()
    found = json.loads(launch(sys.executable, "-c", _READ, tmp_path, "model.pt", timeout=900).check().out.splitlines()[-1])
    print(found)  # MiB, seconds
    assert found["weights"] == pytest.approx(552_814_086 * 4 / 2**20)
    assert found["after"] - found["before"] < 1.25 * found["weights"]
    assert found["error"] < 1e-5
