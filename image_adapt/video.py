"""Videos: read and written frame by frame, edited in chunks that look back at their first frame.

A chunk is the first frame of the video, the anchor, and some of the following ones. In every
self-attention of a latent editor the keys and values of all frames are the anchor's, so that what
is seen in one frame is seen in all (Khachatryan et al. 2023, "Text2Video-Zero", as Decorruptor
uses it). Every frame has the same noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.decorruptor import Decorruptor
from undegrade.utils.data.pixels import from_signed, to_signed, to_unit
from undegrade.utils.extras import import_extra
from undegrade.utils.files import replacing
from undegrade.utils.seeding import torch_generator

CHUNK = 8  # frames, the anchor among them


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video in memory.

    Attributes:
        frames: uint8 [N, 3, H, W].
        rate: frames a second, exact.
    """

    frames: Tensor
    rate: Fraction


def _av() -> Any:
    return import_extra("av", "video", "reading and writing videos")


def read_clip(path: str | Path, limit: int | None = None) -> Clip:
    """All frames of a video's first picture stream, or the first `limit` of them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, has no frames, or frames that do not follow one another at
            one rate.
    """
    av, path = _av(), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist")
    frames, times = [], list[Fraction]()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no pictures, a video is needed")
            stream = container.streams.video[0]
            rate = stream.average_rate
            for frame in container.decode(stream):
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
                if frame.pts is not None:
                    times.append(frame.pts * stream.time_base)
                if len(frames) == limit:
                    break
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be decoded as a video: {error}") from error
    if not frames or rate is None:
        raise ValueError(f"{path} has no frames")
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    if gaps and max(gaps) > 1.5 * min(gaps):  # containers round times
        raise ValueError(
            f"{path} has a variable frame rate ({float(1 / max(gaps)):.2f} to {float(1 / min(gaps)):.2f} frames a second): "
            "convert it to a constant one first"
        )
    return Clip(torch.stack(frames), Fraction(rate))


def write_clip(path: str | Path, clip: Clip) -> None:
    """Write an H.264 video of the same number of frames and the same rate, atomically; a last odd
    row or column is repeated, since the format needs even sides.
    """
    av = _av()
    frames = F.pad(clip.frames.float(), (0, clip.frames.shape[-1] % 2, 0, clip.frames.shape[-2] % 2), mode="replicate").to(
        torch.uint8
    )
    with replacing(path) as temporary, av.open(str(temporary), "w", format=Path(path).suffix.lstrip(".") or "mp4") as container:
        stream = container.add_stream("libx264", rate=clip.rate, options={"crf": "17"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[-2], frames.shape[-1], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")))
        container.mux(stream.encode())


class _Anchored:
    """Self-attention whose keys and values are those of the first frame of each guidance group."""

    def __init__(self, inner: Any, groups: int) -> None:
        self.inner, self.groups = inner, groups

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any) -> Tensor:
        if encoder_hidden_states is None:
            rows = hidden_states.unflatten(0, (self.groups, -1))
            encoder_hidden_states = rows[:, :1].expand_as(rows).flatten(0, 1)
        return self.inner(attn, hidden_states, encoder_hidden_states, **more)


@contextlib.contextmanager
def anchored(unet: Any, groups: int) -> Iterator[None]:
    """Within the block the frames of a batch attend to the first of them.

    Args:
        unet: diffusers' `UNet2DConditionModel`.
        groups: guidance rows of an image; a batch holds all frames of the first, then of the next.
    """
    before = unet.attn_processors
    unet.set_attn_processor({name: _Anchored(inner, groups) for name, inner in before.items()})
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def edit_clip(adapter: Adapter, clip: Clip, seed: int = 0, chunk: int = CHUNK, cross_frame: bool = True) -> Iterator[Tensor]:
    """The adapted frames, uint8 [1..chunk, 3, H, W] at a time, in order.

    Args:
        adapter: any; those that take squares of one size get the frames brought to it, and back.
        clip: of any size.
        seed: of the noise, which all frames share.
        chunk: frames that are adapted together; with cross-frame attention the anchor is one.
        cross_frame: of a latent editor; other adapters do every frame by itself.
    """
    editor = adapter.editor if isinstance(adapter, Decorruptor) and cross_frame else None
    if editor is None:
        for part in clip.frames.split(chunk):
            yield _adapted(adapter, part, seed)
        return
    groups = 3 if editor.scale_width is None else 1
    with anchored(editor.unet, groups):
        anchor = clip.frames[:1]
        yield _adapted(adapter, anchor, seed)
        for part in clip.frames[1:].split(max(1, chunk - 1)):
            yield _adapted(adapter, torch.cat([anchor, part]), seed)[1:]


def _adapted(adapter: Adapter, frames: Tensor, seed: int) -> Tensor:
    x = to_signed(frames)
    size, side = x.shape[-2:], adapter.image_size
    if side is not None:
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    out = adapter.adapt(x, [torch_generator("video", seed) for _ in range(len(x))])
    return from_signed(out if side is None else F.interpolate(out, size, mode="bicubic", antialias=True))


def neighbour_psnr(frames: Tensor) -> float:
    """Mean PSNR in dB between frames that follow one another (uint8 [N, 3, H, W]): the higher, the
    less a video flickers.
    """
    errors = (to_unit(frames[1:]) - to_unit(frames[:-1])).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * errors.log10()).mean()) if len(errors) else math.inf


def label_flips(labels: Sequence[int] | Tensor) -> float:
    """Share of neighbouring frames whose label differs."""
    found = torch.as_tensor(labels)
    return float((found[1:] != found[:-1]).float().mean()) if len(found) > 1 else 0.0
