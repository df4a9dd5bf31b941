"""The corruptions of ImageNet-C-bar on whole batches (Mintun, Kirillov and Xie, NeurIPS 2021,
arXiv:2102.11273).

Every function takes (images uint8 [n, 3, H, W], n random generators, the level of one severity in
0..10) and returns grey levels as doubles, which `utils.data.perturbations.corruptions` clips and
truncates, as the public generator does. Lengths of the generator that are shares of its image's
side are shares of the shorter side here; what it draws over the image is drawn over height and
width.

Random numbers are drawn on the CPU, image by image, all of them uniform in [0, 1). The rest is
tensor code on the images' device, in double precision: what then remains of an order of summation
is some 1e-13 grey levels, which truncation hardly ever shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from undegrade.utils.data.perturbations.corruption_functions import Generators

_RAYS = (50, 199)  # fewest and most of a sparkle
_SPARKLES = 5
_LATTICE = 256  # gradients of Perlin's noise, after which its lattice repeats
_CELLS = 7  # of Perlin's coarsest lattice along the shorter side: 32 pixels each of 224
_OCTAVES = 5
_UPRIGHT = 1 - 1e-3  # cosine between the line of sight and a lens from which light is not bent


def _uniform(generators: Generators, images: Tensor, *shapes: Sequence[int]) -> list[Tensor]:
    """For each shape doubles [n, *shape] in [0, 1) on the device of `images`."""
    drawn = [[generator.random(shape) for shape in shapes] for generator in generators]
    return [torch.from_numpy(np.stack(column)).to(images.device) for column in zip(*drawn, strict=True)]


def _scalars(numbers: Tensor) -> list[Tensor]:
    """[n, k] as k tensors [n, 1, 1], one number for all pixels of an image."""
    return [column[:, None, None] for column in numbers.unbind(1)]


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [H, 1] and columns [W] of the pixels."""
    height, width = (torch.arange(side, dtype=torch.float64, device=images.device) for side in images.shape[-2:])
    return height[:, None], width


def _side(images: Tensor) -> int:
    return min(images.shape[-2:])


def single_frequency_greyscale(images: Tensor, generators: Generators, level: float) -> Tensor:
    """A plane wave: one frequency in -pi..pi a pixel, the other no larger; which is along the rows
    is random.
    """
    larger, smaller, swap, phase = _scalars(_uniform(generators, images, (4,))[0])
    larger = (2 * larger - 1) * math.pi
    smaller = (2 * smaller - 1) * larger.abs()
    rows, columns = _places(images)
    along = torch.where(swap < 0.5, larger, smaller) * columns
    down = torch.where(swap < 0.5, smaller, larger) * rows + 2 * math.pi * phase
    wave = along.sin() * down.cos() + along.cos() * down.sin()
    return images + 19.6 * level * wave[:, None]


def cocentric_sine_waves(images: Tensor, generators: Generators, level: float) -> Tensor:
    """Saw-toothed rings around a point, whose distance waves with the angle."""
    x, y, frequency, amplitude, ring = _scalars(_uniform(generators, images, (5,))[0])
    rows, columns = _places(images)
    dx, dy, tenth = columns - images.shape[-1] * x, rows - images.shape[-2] * y, _side(images) / 10
    wave = (dx.atan2(dy) * 10 * frequency).sin() * (tenth * amplitude)
    distance = (dx**2 + dy**2).sqrt() + wave
    teeth = distance.remainder(tenth * ring) / (tenth * ring) - 0.5
    return images + 12.8 * level * teeth[:, None]


def plasma_noise(images: Tensor, generators: Generators, level: float) -> Tensor:
    """Colours from coordinates that are bent by waves, 4 to 6 times, ever finer."""
    time, iterations, sharpness, scale = _scalars(_uniform(generators, images, (4,))[0])
    time, iterations, decay = time * 6 * math.pi, 4 + (3 * iterations).floor(), 2.25 - (0.5 + 0.5 * sharpness)
    scale = (0.075 + 0.125 * scale) * _side(images)
    y, x = ((place / scale).expand(len(images), *images.shape[-2:]) for place in _places(images))
    for step in range(6):
        frequency, shift, weight = 1.93**step, time / 1.15**step, (step < iterations) / decay**step
        down, along = (y * frequency + shift).cos() * weight, (x * frequency + shift).sin() * weight
        x, y = x + down - 0.3 * along, y + along + 0.3 * down
    layer = torch.stack([(x - time).sin(), ((x + y + time.sin()) * 0.5).sin(), (y + time).sin()], 1)
    strength = 6.4 * level
    return (1 - strength / 255) * images + strength * layer


def _rays(rows: Tensor, columns: Tensor, centre: Sequence[Tensor], count: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Light of a star and its shape between two rays, both [n, H, W].

    Args:
        rows, columns: of the pixels.
        centre: row and column, [n, 1, 1].
        count: of rays, [n, 1, 1].
        lengths: of the rays, [n, at least count].

    Returns:
        (length^2 / distance^2, 1 - (place between two rays - 1/2)^2).
    """
    dy, dx = rows - centre[0], columns - centre[1]
    turn = (dx.atan2(dy) + math.pi) / (2 * math.pi) * count
    ray = turn.floor()
    share = turn - ray
    here, beyond = (lengths.gather(1, place.remainder(count).long().flatten(1)).view(turn.shape) for place in (ray, ray + 1))
    length = here + share * (beyond - here)
    return length**2 / (dx**2 + dy**2 + 1e-4), 1 - (share - 0.5) ** 2


def _ray_counts(uniform: Tensor) -> Tensor:
    fewest, most = _RAYS
    return fewest + ((most - fewest + 1) * uniform).floor()


def _ray_lengths(uniform: Tensor, radius: float) -> Tensor:
    """Normal, with a quarter of the radius as deviation."""
    return radius * (1 + 0.25 * torch.special.ndtri(uniform.clamp(min=2**-53)))


def sparkles(images: Tensor, generators: Generators, level: float) -> Tensor:
    """Five white stars."""
    places, lengths = _uniform(generators, images, (_SPARKLES, 3), (_SPARKLES, _RAYS[1]))
    lengths = _ray_lengths(lengths, level / 100 * _side(images)).clamp(min=1)
    shade = torch.ones(len(images), *images.shape[-2:], dtype=torch.float64, device=images.device)
    for star in range(_SPARKLES):
        y, x, count = _scalars(places[:, star])
        centre = (y * images.shape[-2], x * images.shape[-1])
        light, shape = _rays(*_places(images), centre, _ray_counts(count), lengths[:, star])
        shade *= 1 - (shape * light).clamp(0, 1)
    return 255 - (255 - images.double()) * shade[:, None]


def inverse_sparkles(images: Tensor, generators: Generators, level: float) -> Tensor:
    """White but for one star near the middle."""
    place, lengths = _uniform(generators, images, (3,), (_RAYS[1],))
    y, x, count = _scalars(place)
    centre = ((0.25 + 0.5 * y) * images.shape[-2], (0.25 + 0.5 * x) * images.shape[-1])
    light, shape = _rays(*_places(images), centre, _ray_counts(count), _ray_lengths(lengths, 0.25 * _side(images)))
    seen = (shape * light ** (0.13 * level)).clamp(0, 1)
    return 255 - (255 - images.double()) * seen[:, None]


@lru_cache(maxsize=64)
def _perlin_weights(size: int, cells: float) -> tuple[Tensor, Tensor, Tensor]:
    """The lattice points [p] beside pixels, and [size, p]: what each weighs at each pixel, and that
    times the distance to it.
    """
    place = np.arange(size) * cells
    below = np.floor(place).astype(np.int64)
    offset = place - below
    points = np.unique([below, below + 1])
    weights, distances = np.zeros((2, size, len(points)))
    for side, weight in enumerate((1 - offset**2 * (3 - 2 * offset), offset**2 * (3 - 2 * offset))):
        column = np.searchsorted(points, below + side)
        weights[np.arange(size), column] = weight
        distances[np.arange(size), column] = weight * (offset - side)
    return torch.from_numpy(points), torch.from_numpy(weights), torch.from_numpy(distances)


def perlin_noise(images: Tensor, generators: Generators, level: float) -> Tensor:
    """Perlin's turbulence: the magnitude of five octaves of gradient noise, as light.

    A lattice point's gradient is one of 256, chosen by a permutation of its row plus its column.
    Noise is the mean of the four gradients' planes by Perlin's weights, which are products of one
    factor for the row and one for the column.
    """
    gradients, order = _uniform(generators, images, (_LATTICE, 2), (_LATTICE,))
    gradients, order = functional.normalize(2 * gradients - 1, dim=-1), order.argsort(1)
    light = torch.zeros(len(images), *images.shape[-2:], dtype=torch.float64, device=images.device)
    for octave in range(_OCTAVES):
        cells = 2**octave * _CELLS / _side(images)
        (rows, down, dy), (columns, along, dx) = (
            [part.to(images.device) for part in _perlin_weights(size, cells)] for size in images.shape[-2:]
        )
        chosen = (order[:, rows % _LATTICE, None] + columns) % _LATTICE
        x, y = (part.gather(1, chosen.flatten(1)).view(chosen.shape) for part in gradients.unbind(-1))
        light += 1.5 / 2**octave * (dy @ x @ along.T + down @ y @ dx.T).abs()
    share = 0.05 * level
    return (1 - share) * images + 255 * share * (0.5 + 0.5 * light[:, None]).clamp(0, 1)


@lru_cache(maxsize=16)
def _frequencies(height: int, width: int) -> Tensor:
    """[H, W] distance of each frequency from the middle of the spectrum, the lowest at the corner.

    The middle of an odd number of frequencies lies between two, as in the public generator.
    """
    rows, columns = ((np.arange(size) - size / 2) ** 2 for size in (height, width))
    return torch.from_numpy(np.roll(np.sqrt(rows[:, None] + columns), (height // 2, width // 2), axis=(0, 1)))


def _noise_of_power(magnitude: Tensor, uniform: Tensor) -> Tensor:
    """Noise [..., H, W] of deviation 1 in which each frequency has the same `magnitude` [H, W].

    The phases are those of `uniform` [..., H, (W + 1) // 2] for the left half of the spectrum, and
    for the right half the same turned by 180 degrees, as in the public generator. That is not the
    symmetry of a real image's spectrum: the real part that is taken resembles itself turned round.
    """
    height, width = magnitude.shape
    phase = 2 * math.pi * uniform
    if width % 2:
        below = height // 2
        phase[..., height - below :, -1] = phase[..., :below, -1].flip(-1)
        if height % 2:
            phase[..., below, -1] = 0
    wave = torch.polar(torch.ones_like(phase), phase)
    wave = torch.cat([wave, wave[..., : width // 2].flip(-1, -2)], -1).roll((height // 2, width // 2), (-2, -1))
    noise = torch.fft.ifft2(wave * magnitude.to(wave.device)).real
    deviation = noise.std(dim=(-2, -1), correction=0, keepdim=True)
    return noise / torch.where(deviation > 0, deviation, math.inf)  # none on a single pixel


def _phases(images: Tensor, generators: Generators, *channels: int) -> Tensor:
    height, width = images.shape[-2:]
    return _uniform(generators, images, (*channels, height, (width + 1) // 2))[0]


def brownish_noise(images: Tensor, generators: Generators, level: float) -> Tensor:
    """Noise for each channel whose magnitude falls with the square of the frequency."""
    magnitude = 1 / (_frequencies(*images.shape[-2:]) ** 2 + 1)
    return images + 6.4 * level * _noise_of_power(magnitude, _phases(images, generators, 3))


def blue_noise_sample(images: Tensor, generators: Generators, level: float) -> Tensor:
    """Black wherever noise, whose magnitude grows with the frequency, is low."""
    seen = _noise_of_power(_frequencies(*images.shape[-2:]), _phases(images, generators)) > 0.3 * level - 2.5
    return images * seen[:, None].double()


def checkerboard_cutout(images: Tensor, generators: Generators, level: float) -> Tensor:
    """A turned chessboard of whose black squares a share is grey."""
    reach = math.ceil(math.hypot(*images.shape[-2:]) / max(0.1 * _side(images), 1))
    numbers, grid = _uniform(generators, images, (2,), (2 * reach + 1, 2 * reach + 1))
    angle, scale = _scalars(numbers)
    scale = ((0.1 + 0.15 * scale) * _side(images)).clamp(min=1)
    angle, (rows, columns) = 2 * math.pi * angle, _places(images)
    y = (angle.cos() * rows + angle.sin() * columns) / scale
    x = (angle.cos() * columns - angle.sin() * rows) / scale
    # Truncated, as in the public generator: squares on both sides of an axis are drawn together.
    square = (y.long() + reach) * (2 * reach + 1) + x.long() + reach
    drawn = grid.flatten(1).gather(1, square.flatten(1)).view(square.shape) < level / 10
    hidden = (drawn & (y.floor().remainder(2) == x.floor().remainder(2)))[:, None].double()
    return images * (1 - hidden) + 128 * hidden


@lru_cache(maxsize=16)
def _softening(size: int) -> Tensor:
    """[size, size] of a Gaussian filter of deviation 1, the edge mirrored."""
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(size), 1, axis=0))


def _caustics(images: Tensor, time: Tensor, size: Tensor) -> Tensor:
    """[n, H, W] in 0..1: the light that waves bundle on the ground, softened; `size` is that of the
    tile that repeats.
    """
    y, x = ((place / size).remainder(1) * 6.28318530718 - 250 for place in _places(images))
    light: Tensor | float = 1.0
    down, along = y, x
    for step in range(1, 6):
        t = time * (1 - 3.5 / step)
        down, along = y + (t - down).cos() + (t + along).sin(), x + (t - along).sin() + (t + down).cos()
        light = light + 200 / ((y / (down + t).sin()) ** 2 + (x / (along + t).cos()) ** 2).sqrt()
    assert isinstance(light, Tensor)
    light = (1.17 - (light / 5) ** 1.4).abs().pow(8).clamp(0, 1)
    across, beside = (_softening(size).to(images.device) for size in images.shape[-2:])
    return across @ light @ beside.T


def _at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Double [n, C, H, W] at places [n, h, w], interpolated linearly, black outside."""
    height, width = images.shape[-2:]
    padded = functional.pad(images, (1, 2, 1, 2)).flatten(2)
    rows, columns = rows.clamp(-1, height) + 1, columns.clamp(-1, width) + 1
    top, left = rows.floor(), columns.floor()
    below, beside = (rows - top)[:, None], (columns - left)[:, None]
    first = (top * (width + 3) + left).long().flatten(1)[:, None].expand(-1, images.shape[1], -1)
    corners = [padded.gather(2, first + step).view(*images.shape[:2], *rows.shape[1:]) for step in (0, 1, width + 3, width + 4)]
    upper, lower = (corners[i] * (1 - beside) + corners[i + 1] * beside for i in (0, 2))
    return upper * (1 - below) + lower * below


def caustic_refraction(images: Tensor, generators: Generators, level: float) -> Tensor:
    """Seen through water, whose slopes are those of caustic light and bend and brighten what is
    below.
    """
    time, size = _scalars(_uniform(generators, images, (2,))[0])
    light = _caustics(images, 0.5 + 1.5 * time, (0.75 + 0.5 * size) * _side(images))
    light = functional.pad(light, (1, 1, 1, 1))
    down, along = light[:, 2:, 1:-1] - light[:, :-2, 1:-1], light[:, 1:-1, 2:] - light[:, 1:-1, :-2]
    # Snell's law from (0, 0, 1) through the normal (down, along, 1) with refractive index 4: the
    # ray leaves towards the normal by sin(a - asin(sin(a) / 4)), a being the angle between both.
    cosine = (down**2 + along**2 + 1).rsqrt()
    bend = ((1 - (1 - cosine**2) / 16).sqrt() - cosine / 4) * cosine * (0.05 * level * _side(images))
    bend = torch.where(cosine >= _UPRIGHT, 0, bend)
    rows, columns = _places(images)
    bent = _at(images.double(), rows + (down * bend * 1000).round() / 1000, columns + (along * bend * 1000).round() / 1000)
    return bent + 255 * 0.2 * level * (down - along)[:, None]
