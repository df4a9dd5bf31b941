"""Decorruptor's corruption model, a variant of PixMix (Hendrycks et al., CVPR 2022,
arXiv:2112.05135; Decorruptor: arXiv:2403.10911).

A share of 0.2 of the images stays as it is, 0.2 go through SimSiam's transform, and 0.6 are mixed:
a first augmentation m of the image x, then 1 to 4 rounds, in each of which m is added to or
multiplied by a partner: another augmentation of x, one of two pictures (each a fractal or a texture
of a first layer, with equal probability), or SimSiam's transform of x. There is no level.

Lengths that were made for 256 px (translation up to a thirtieth, blur of deviation 0.1 to 6.5) are
shares of the image here: of its width or height, and of its shorter side. Rotation and shear are
angles. Four of the 13 augmentations are like test corruptions of ImageNet-C (`OVERLAPPING`): a
report on ImageNet-C has to say so, or leave them out by `all_ops: false`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from undegrade.utils.data.perturbations import pixmix_operators as operators
from undegrade.utils.data.perturbations.degradation_functions import Random
from undegrade.utils.data.perturbations.degradations import Degradation
from undegrade.utils.data.perturbations.mixing_pictures import KINDS, count_pictures, describe_pictures, mixing_picture
from undegrade.utils.data.perturbations.perturbation import PERTURBATIONS, PerturbationOptions
from undegrade.utils.data.pixels import to_unit

AUGMENTATIONS = (
    "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y",
    "color", "contrast", "brightness", "sharpness",
)  # fmt: skip
OVERLAPPING = AUGMENTATIONS[9:]
ROUNDS = 4
BETA = 4
PARTNERS = (1 / 4, 21 / 64, 21 / 64, 3 / 32)  # an augmentation of x, picture 1, picture 2, SimSiam's transform of x
DESIGNED_FOR = 256  # pixels, of the lengths that scale
_JITTER_ORDERS = torch.tensor(list(itertools.permutations(range(4))))


@dataclass(frozen=True)
class PixMixOptions:
    """Of which parts PixMix makes images.

    Attributes:
        all_ops: false leaves out the four augmentations that are like test corruptions of
            ImageNet-C: color, contrast, brightness, sharpness.
        fractals: folder of pictures to mix in (null: 300 fractals made here).
        features: folder of the other pictures, feature visualisations (null: 300 textures of
            first-layer filters made here).
    """

    all_ops: bool = True
    fractals: str | None = None
    features: str | None = None


class Draws(NamedTuple):
    """What is drawn for n images, whatever becomes of it. Slot 0 is the start, slots 1 to 4 are the
    rounds' partners.

    Attributes:
        mixed, transformed: bool [n], mixed by PixMix or transformed by SimSiam; else untouched.
        rounds: [n], 1..4.
        partner: [n, 5], place in `PARTNERS`; of slot 0 that of an augmentation.
        multiply: bool [n, 5], multiplied, not added.
        a, b: [n, 5], exponents or weights of image and partner.
        picture: [n, 2, 2], uniform in [0, 1): which of the two sets, which picture in it.
        augmentation: [n, 5, 3], uniform: operator, strength, sign.
        simsiam: [n, 5, 9], uniform: see `simsiam`.
    """

    mixed: Tensor
    transformed: Tensor
    rounds: Tensor
    partner: Tensor
    multiply: Tensor
    a: Tensor
    b: Tensor
    picture: Tensor
    augmentation: Tensor
    simsiam: Tensor


def draw(random: Random) -> Draws:
    """From 91 uniform numbers an image."""
    slots = ROUNDS + 1
    uniform = torch.from_numpy(random.random((2 + 4 + slots * (5 + 3 + 9),))).double()
    kind, rounds, picture, mixing, augmentation, transform = uniform.split([1, 1, 4, 5 * slots, 3 * slots, 9 * slots], 1)
    partner, multiply, weaker, strong, weak = mixing.unflatten(1, (slots, 5)).unbind(-1)
    partner = torch.searchsorted(torch.tensor(PARTNERS, dtype=torch.float64).cumsum(0)[:3], partner.contiguous(), right=True)
    partner[:, 0] = 0
    kind = (5 * kind[:, 0]).floor()
    # By inverse distribution functions: a of Beta(4, 1) and b of Beta(1, 4), or a is beyond 1
    # and b below 0 by numbers of Beta(1, 4).
    strong_a, weak_b = strong ** (1 / BETA), 1 - (1 - weak) ** (1 / BETA)
    a = torch.where(weaker < 0.5, strong_a, 2 - (1 - strong) ** (1 / BETA))
    return Draws(
        mixed=(kind > 0) & (kind < 4),
        transformed=kind == 4,
        rounds=1 + (ROUNDS * rounds[:, 0]).floor().long(),
        partner=partner,
        multiply=multiply < 0.5,
        a=a,
        b=torch.where(weaker < 0.5, weak_b, -weak_b),
        picture=picture.unflatten(1, (2, 2)),
        augmentation=augmentation.unflatten(1, (slots, 3)),
        simsiam=transform.unflatten(1, (slots, 9)),
    )


def pixmix(images: Tensor, levels: Tensor, random: Random, options: PixMixOptions) -> Tensor:
    """The corruption model; `levels` say nothing."""
    draws = draw(random)
    slot = torch.arange(ROUNDS + 1)
    used = torch.where(slot == 0, True, slot <= draws.rounds[:, None]) & draws.mixed[:, None]
    augmented = (used & (draws.partner == 0)).nonzero(as_tuple=True)
    transformed = (used & (draws.partner == 3) | (slot == 0) & draws.transformed[:, None]).nonzero(as_tuple=True)
    pictured = (used & (draws.partner % 3 > 0)).nonzero(as_tuple=True)

    # all that is needed side by side, and for each image and slot the place where it stands
    pool = torch.cat([
        images,
        augment(images[augmented[0]], draws.augmentation[augmented], options.all_ops),
        simsiam(images[transformed[0]], draws.simsiam[transformed]),
        _pictures(images, draws.picture[pictured[0], draws.partner[pictured] - 1], options),
    ])  # fmt: skip
    place = torch.arange(len(images))[:, None].repeat(1, ROUNDS + 1)
    start = len(images)
    for where in (augmented, transformed, pictured):
        place[where] = torch.arange(start, start + len(where[0]))
        start += len(where[0])

    result = pool[place[:, 0]]
    mixed = to_unit(result)
    for turn in range(1, ROUNDS + 1):
        rows = used[:, turn].nonzero()[:, 0]
        if len(rows):
            a, b, multiply = (part[rows, turn].to(images.device) for part in (draws.a, draws.b, draws.multiply))
            mixed[rows] = mix(mixed[rows], pool[place[rows, turn]], a, b, multiply)
    return torch.where(draws.mixed.to(images.device)[:, None, None, None], (mixed * 255).round().to(torch.uint8), result)


def mix(image: Tensor, partner: Tensor, a: Tensor, b: Tensor, multiply: Tensor) -> Tensor:
    """The sum (a (2 m - 1) + b (2 p - 1) + 1) / 2 or the product (2 m)^a (2 p)^b / 2, clipped.

    Args:
        image: m, float [n, 3, H, W] in [0, 1].
        partner: 255 p, uint8 of that shape.
        a, b: double [n], on the device of the images.
        multiply: bool [n], which are multiplied.

    Returns:
        Float [n, 3, H, W] in [0, 1].
    """
    result = torch.empty_like(image)
    if len(rows := (~multiply).nonzero()[:, 0]):
        of_image, of_partner = (part[rows].to(image)[:, None, None, None] for part in (a, b))
        result[rows] = (of_image * (2 * image[rows] - 1) + of_partner * (2 * to_unit(partner[rows]) - 1) + 1) / 2
    if len(rows := multiply.nonzero()[:, 0]):
        # A power of single precision may differ in its last bit with its place in a batch.
        powers = (torch.arange(256, device=image.device) / 127.5).clamp(min=1e-37).double() ** b[rows, None]
        of_partner = powers.gather(1, partner[rows].flatten(1).long()).view(-1, *image.shape[1:])
        result[rows] = ((2 * image[rows].double()) ** a[rows, None, None, None] * of_partner / 2).to(image)
    return result.clamp_(0, 1)


def _pictures(images: Tensor, uniform: Tensor, options: PixMixOptions) -> Tensor:
    """uint8 [k, 3, H, W] for k pairs in [0, 1): which set, which picture in it."""
    chosen = []
    for of_set, of_picture in uniform.tolist():
        kind = KINDS[int(2 * of_set)]
        folder = getattr(options, kind)
        index = int(of_picture * count_pictures(kind, folder))
        chosen.append(mixing_picture(kind, folder, index, images.shape[-2], images.shape[-1]))
    return torch.stack(chosen).to(images.device) if chosen else images[:0]


def _changed(images: Tensor, where: Tensor, function: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Replace those of the images for which `where` [n] holds by `function` of them and of their
    parameters.
    """
    rows = where.nonzero()[:, 0]
    if len(rows):
        images[rows] = function(images[rows], *(part[rows].to(images.device) for part in parameters))


def augment(images: Tensor, uniform: Tensor, all_ops: bool = True) -> Tensor:
    """One of `AUGMENTATIONS` for each image.

    Args:
        images: uint8 [n, 3, H, W].
        uniform: [n, 3] in [0, 1): which one; its strength L, from 0.1 to 1; its sign.
        all_ops: False: none of `OVERLAPPING`.
    """
    names = AUGMENTATIONS if all_ops else AUGMENTATIONS[: -len(OVERLAPPING)]
    height, width = images.shape[-2:]
    strength, sign = 0.1 + 0.9 * uniform[:, 1], torch.where(uniform[:, 2] < 0.5, 1.0, -1.0).double()
    enhanced, shear = 0.18 * strength + 0.1, 0.03 * strength * sign
    across, down = ((side / 30 * strength).floor() * sign for side in (width, height))
    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "posterize": (lambda images: operators.posterize(images, 4), ()),
        "rotate": (operators.rotate, ((3 * strength).floor() * sign,)),
        "solarize": (operators.solarize, (256 - (25.6 * strength).floor(),)),
        "shear_x": (lambda images, by: operators.affine(images, (1, by, 0, 0, 1, 0)), (shear,)),
        "shear_y": (lambda images, by: operators.affine(images, (1, 0, 0, by, 1, 0)), (shear,)),
        "translate_x": (lambda images, by: operators.affine(images, (1, 0, by, 0, 1, 0)), (across,)),
        "translate_y": (lambda images, by: operators.affine(images, (1, 0, 0, 0, 1, by)), (down,)),
    }
    calls |= {name: (getattr(operators, name), (enhanced,)) for name in OVERLAPPING}
    calls |= {name: (getattr(operators, name), ()) for name in ("autocontrast", "equalize")}
    operator, result = (len(names) * uniform[:, 0]).floor(), images.clone()
    for index, name in enumerate(names):
        function, parameters = calls[name]
        _changed(result, operator == index, function, *parameters)
    return result


def simsiam(images: Tensor, uniform: Tensor) -> Tensor:
    """SimSiam's transform: jittered colours (p 0.8), grey (p 0.2), blurred (p 0.5).

    Args:
        images: uint8 [n, 3, H, W].
        uniform: [n, 9] in [0, 1): whether colours are jittered; factors of brightness, contrast and
            saturation, from 0.6 to 1.4; turn of the hue, from -0.1 to 0.1; order of these four;
            whether grey; whether blurred; deviation of the blur.
    """
    jittered, *by, order, grey, blurred, deviation = uniform.unbind(1)
    shifts = [0.6 + 0.8 * factor for factor in by[:3]] + [0.2 * by[3] - 0.1]
    functions = (operators.brightness, operators.contrast, operators.color, operators.shifted_hue)
    orders, result = _JITTER_ORDERS[(24 * order).long()], images.clone()
    for position, (which, function) in itertools.product(range(4), enumerate(functions)):
        _changed(result, (jittered < 0.8) & (orders[:, position] == which), function, shifts[which])
    _changed(result, grey < 0.2, operators.greyscale)
    radius = (0.1 + 6.4 * deviation) * (min(images.shape[-2:]) / DESIGNED_FOR)
    _changed(result, blurred < 0.5, operators.gaussian_blur, radius)
    return result


@dataclass(frozen=True, kw_only=True)
class _PixMix(Degradation):
    def identity(self, options: PerturbationOptions, image_size: int) -> dict[str, Any]:
        """A folder is known by the names and sizes of its pictures, wherever it lies."""
        own, said = self.own(options), super().identity(options, image_size)
        folders = {kind: describe_pictures(kind, folder) for kind in KINDS if (folder := getattr(own, kind)) is not None}
        return {self.name: said[self.name] | folders} if folders else said


PERTURBATIONS.add(
    "pixmix",
    _PixMix(
        name="pixmix", function=pixmix, sweep=(0,), options=PixMixOptions,
        description="one level; Decorruptor's corruption model",
    ),
)  # fmt: skip
