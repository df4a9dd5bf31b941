"""Every command line that the published FusionDistill, DiffAUD and SDA instructions give is
understood, placeholders replaced.

Those of SDA's align.sh, which need the flags of the published network: test_sda_commands.py.
"""

from __future__ import annotations

import shlex

import pytest

from tests.commands import check_command
from tests.shipped import names_in
from undegrade.utils.config import read_yaml
from undegrade.utils.published_commands import published_run

DATASETS = ("CIFAR10", "CIFAR100", "TinyImagenet")
DEGRADATIONS = ("jpeg", "blur", "noise", "saltpepper")
CONFIGS = "configs/deg_all/<DATASET>/ResNet56"
SAVED = "saved/combined_deg"
COMMANDS = [
    "python train.py -c configs/ind/<DATASET>/ResNet56_clean.yaml",
    "python train.py -c configs/sl/<DATASET>/ResNet56-56.yaml --dt <DEG_TYPE>",
    "python utils/model_soups.py --dataset <DATASET>",
    f"python train_all_deg.py -c {CONFIGS}-56_consistency.yaml --dt combined_deg",
    f"python train_all_deg.py -c {CONFIGS}-56_fusiondistill.yaml --dt combined_deg",
    f"python train_all_deg.py -c {CONFIGS}_base_scratch.yaml --dt combined_deg",
    f"python train_all_deg.py -c {CONFIGS}_base_vanilla.yaml --dt combined_deg",
    f"python train_all_deg.py -c {CONFIGS}_fused.yaml --dt combined_deg",
    f"python test_ensemble.py -c {CONFIGS}_ensemble.yaml",
    "python test.py -r saved/<DEG_TYPE>/SLTrainer/ResNet56-56_<DATASET>/train/latest/model_best.pth",
    f"python test.py -r {SAVED}/SLDA_Trainer/ResNet56-56_<DATASET>/train/latest/model_best.pth --dt <DEG_TYPE>",
    f"python test.py -r {SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_scratch/train/latest/model_best.pth --dt <DEG_TYPE>",
    f"python test.py -r {SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_vanilla/train/latest/model_best.pth --dt <DEG_TYPE>",
    f"python test.py -r {SAVED}/SLTrainer/ResNet56-56_<DATASET>_soups/train/latest/model_best.pth --dt <DEG_TYPE>",
    f"python test.py -r {SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_fused/train/latest/model_best.pth --dt <DEG_TYPE>",
]
# what an evaluation command looks for -> the configuration whose run it is
MADE_BY = {
    "saved/<DEG_TYPE>/IndTrainer/ResNet56_<DATASET>_clean": "configs/ind/<DATASET>/ResNet56_clean.yaml",
    "saved/<DEG_TYPE>/SLTrainer/ResNet56-56_<DATASET>": "configs/sl/<DATASET>/ResNet56-56.yaml",
    f"{SAVED}/SLTrainer/ResNet56-56_<DATASET>_soups": f"{CONFIGS}_soups.yaml",
    f"{SAVED}/SLDA_Trainer/ResNet56-56_<DATASET>": f"{CONFIGS}-56_consistency.yaml",
    f"{SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_scratch": f"{CONFIGS}_base_scratch.yaml",
    f"{SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_vanilla": f"{CONFIGS}_base_vanilla.yaml",
    f"{SAVED}/IndDATrainer/ResNet56_<DATASET>_deg_fused": f"{CONFIGS}_fused.yaml",
}

DIFFAUD = [
    "python train.py -c configs/ind/<DATASET>/<BACKBONE>/deg.yaml --dt <DEG_TYPE>",
    "python train.py -c configs/ind/<DATASET>/<BACKBONE>/adapt.yaml --dt <DEG_TYPE>",
    "python train_all_deg.py -c configs/deg_all/<DATASET>/<BACKBONE>/deg_all.yaml",
    "python train_all_deg.py -c configs/deg_all/<DATASET>/<BACKBONE>/degDistill.yaml",
    "python train_all_deg.py -c configs/deg_all/<DATASET>/<BACKBONE>/adaptDistill.yaml",
    "python test_ensemble.py model_adapt/configs/ensemble/<BACKBONE>_ensemble_b64_<DATASET>.py deg.pth "
    "--second_model_prefix adapt.pth --metrics accuracy --ensemble sum --corruption gaussian_noise --severity 5 "
    "--data_prefix1 dataset/imagenetc_5k --data_prefix2 dataset/generated/imagenetc_5k --out saved/jpeg_blur_noise/Diffusion/eval",
]
SDA = [
    "mpiexec -n 5 python image_adapt/scripts/generate.py --image-size 256 --sample-dir data --cfg-scale 1.0 "
    "--ckpt pretrained_ckpt/DiT-XL-2-256x256.pt --global-seed 0 --num-fid-samples 50000",
    "mpiexec -n 5 python image_adapt/scripts/generate.py --model DiT-XL/2 --vae ema --sample-dir data --per-proc-batch-size 10 "
    "--num-fid-samples 50000 --image-size 256 --num-classes 1000 --cfg-scale 1.0 --num-sampling-steps 250 --global-seed 0 "
    "--ckpt pretrained_ckpt/DiT-XL-2-256x256.pt",
    "torchrun --nproc_per_node 8 train.py -c configs/sda/Imagenet/<RECIPE>.yaml --data.dataset data/DiT-Syn",
    "python test_ensemble.py eval/configs/ensemble/<MODEL>.py f.pth --originckpt source.pth --metrics accuracy --datatype C "
    "--ensemble sda --corruption gaussian_noise --data_prefix1 data/ImageNet-C --data_prefix2 data/ImageNet-C-Syn",
    "python test_ensemble.py eval/configs/ensemble/<MODEL>.py f.pth --originckpt source.pth --metrics accuracy --datatype W "
    "--ensemble sda --data_prefix1 data/ImageNet-W --data_prefix2 data/ImageNet-W-Syn",
]
BACKBONES = [("CIFAR10", "ResNet18"), ("CIFAR10", "ResNet50"), *(("Imagenet", arch) for arch in ("ResNet50", "convnextT", "swinT"))]


def replaced(text: str, dataset: str, deg: str) -> str:
    return text.replace("<DATASET>", dataset).replace("<DEG_TYPE>", deg)


@pytest.mark.parametrize("line", sorted({replaced(line, d, t) for line in COMMANDS for d in DATASETS for t in DEGRADATIONS}))
def test_published_command_is_understood(line: str) -> None:
    check_command(shlex.split(line))


@pytest.mark.parametrize(("dataset", "backbone"), BACKBONES)
@pytest.mark.parametrize("line", DIFFAUD)
def test_published_diffaud_command_is_understood(line: str, dataset: str, backbone: str) -> None:
    check_command(shlex.split(replaced(line, dataset, "jpeg").replace("<BACKBONE>", backbone)))


@pytest.mark.parametrize("model", ["resnet50", "swinT", "swinB", "convnextT", "convnextB"])
@pytest.mark.parametrize("line", SDA)
def test_published_sda_command_is_understood(line: str, model: str) -> None:
    check_command(shlex.split(line.replace("<MODEL>", model).replace("<RECIPE>", model.replace("resnet", "ResNet"))))


@pytest.mark.parametrize("saved", MADE_BY)
@pytest.mark.parametrize("dataset", DATASETS)
def test_published_checkpoint_is_that_of_the_run_that_its_training_command_makes(saved: str, dataset: str) -> None:
    for deg in DEGRADATIONS:
        name, _ = names_in(read_yaml(replaced(MADE_BY[saved], dataset, deg)), dataset, deg)
        assert published_run(replaced(f"{saved}/train/0824_101500/model_best.pth", dataset, deg)) == f"{name}/0824_101500"
