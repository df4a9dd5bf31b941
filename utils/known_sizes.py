"""Sizes that are known before anything is there: arithmetic of networks, images of data sets."""

from __future__ import annotations

from typing import NamedTuple


class Network(NamedTuple):
    """GFLOP (two for a multiplication and addition) of a pass forward of an image of `side` pixels,
    and millions of weights.
    """

    gflop: float
    weights: float
    side: int


NETWORKS = {
    "ResNet20": Network(0.0816, 0.27, 32),
    "ResNet56": Network(0.2515, 0.86, 32),
    "ResNet18_CIFAR": Network(1.111, 11.2, 32),
    "ResNet50_CIFAR": Network(2.596, 23.5, 32),
    "MobileNetV2_CIFAR": Network(0.176, 2.24, 32),
    "swinT_CIFAR": Network(0.716, 27.5, 32),
    "convnextT_CIFAR": Network(0.726, 27.8, 32),
    "WRN28_10": Network(10.49, 36.5, 32),
    "resnet50": Network(8.18, 25.6, 224),
    "convnext_tiny": Network(8.91, 28.6, 224),
    "convnext_base": Network(30.7, 88.6, 224),
    "swin_tiny_patch4_window7_224": Network(8.98, 28.3, 224),
    "swin_base_patch4_window7_224": Network(30.9, 87.8, 224),
    # diffusion models by their channels and blocks a level, published ones by their file
    "16-32-48 x1": Network(0.1502, 0.43, 32),
    "16-32-64 x1": Network(0.1846, 0.64, 32),
    "32-64-128 x1": Network(0.7326, 2.54, 32),
    "128-256-256-256 x2": Network(12.63, 37.1, 32),
    # for masks, as they are trained, and for points
    "ResNet20 segmentation": Network(0.2832, 0.38, 48),
    "resnet18 segmentation": Network(23.24, 13.4, 448),
    "resnet50 segmentation": Network(160.6, 59.2, 448),
    "ResNet20 landmarks": Network(0.0945, 0.32, 32),
    "resnet50 landmarks": Network(14.64, 34.0, 256),
    "hrnet_w18 landmarks": Network(9.387, 9.66, 256),
    # restorers by width and layers, or blocks of the encoder
    "ffdnet 48 x8": Network(0.0692, 0.136, 32),
    "ffdnet 96 x12": Network(0.4362, 0.85, 32),
    "ffdnet_color": Network(0.4362, 0.85, 32),  # as published
    "nafnet 16 1-1-2": Network(0.0356, 0.32, 32),
    # latent editors, whose side is that of the latents, and autoencoders there and back
    "editor 32-64 x1": Network(0.1923, 0.80, 16),
    "editor 128-256-256 x2": Network(4.772, 34.1, 16),
    "autoencoder 16-32 x1": Network(0.1426, 0.17, 32),
    "autoencoder 64-128 x2": Network(2.642, 3.35, 32),
    "256x256_diffusion_uncond": Network(2240, 552.8, 256),
    "DiT-XL-2-256x256": Network(237.3, 675.1, 256),
    "sd-vae-ft-ema": Network(622, 49.5, 256),  # what decodes
}

# adapters that filter images
WITHOUT_NETWORK = (
    "non_local_means", "bilateral", "median_filter", "deblocking", "clahe", "equalize", "stretch", "grey_world",
)  # fmt: skip


class Sizes(NamedTuple):
    """Images of the parts of a data set, their side in pixels, number of classes or points."""

    train: int
    validation: int
    test: int
    side: int
    classes: int


SIZES = {
    "Digits": Sizes(1295, 143, 359, 32, 10),
    "DigitScenes": Sizes(1000, 100, 250, 48, 11),
    "DigitPoints": Sizes(1295, 143, 359, 32, 5),
    "CIFAR10": Sizes(45000, 5000, 10000, 32, 10),
    "CIFAR100": Sizes(45000, 5000, 10000, 32, 100),
    "TinyImagenet": Sizes(90000, 10000, 10000, 64, 200),
    "Imagenet": Sizes(1153050, 128117, 50000, 224, 1000),
    "CelebAMaskHQ": Sizes(24183, 2993, 2824, 512, 19),
    "WFLW": Sizes(6750, 750, 2500, 256, 98),
}
