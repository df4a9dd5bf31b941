"""Videos: read and written without loss of frames or rate, and edited with an eye on the first."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.editing import tiny_editor
from tests.scripts import run_script
from undegrade.image_adapt.adapter import Adapter
from undegrade.image_adapt.decorruptor import Decorruptor, DecorruptorOptions
from undegrade.image_adapt.video import Clip, anchored, edit_clip, label_flips, neighbour_psnr, read_clip, write_clip
from undegrade.models.diffusion.editor_loading import save_folder

NTSC = Fraction(30000, 1001)


def clip(count: int = 11, height: int = 32, width: int = 48, rate: Fraction = NTSC) -> Clip:
    """A bright square that wanders over a smooth ground."""
    ground = torch.linspace(40, 200, width).expand(3, height, width)
    frames = ground.repeat(count, 1, 1, 1).to(torch.uint8)
    for i in range(count):
        frames[i, :, 8:20, i : i + 12] = 230
    return Clip(frames, rate)


@pytest.mark.parametrize(("rate", "size"), [(NTSC, (32, 48)), (Fraction(25), (33, 47))])
def test_a_video_keeps_frames_rate_and_pixels(rate: Fraction, size: tuple[int, int], tmp_path: Path) -> None:
    original = clip(11, *size, rate)
    write_clip(tmp_path / "a.mp4", original)
    again = read_clip(tmp_path / "a.mp4")
    assert again.rate == rate and len(again.frames) == 11
    inner = again.frames[..., : size[0], : size[1]]
    assert (inner.float() - original.frames.float()).abs().mean() < 4  # the format is lossy
    assert len(read_clip(tmp_path / "a.mp4", 3).frames) == 3


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.mp4"):
        read_clip(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="cannot be decoded as a video"):
        read_clip(tmp_path / "text.mp4")


def test_a_variable_rate_is_refused(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for time, picture in zip((0, 1, 2, 10, 11), clip().frames, strict=False):
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="variable frame rate"):
        read_clip(tmp_path / "v.mkv")


@pytest.mark.parametrize(("width", "groups"), [(None, 3), (6, 1)], ids=["ordinary", "distilled"])
def test_frames_attend_to_the_first_of_their_group(width: int | None, groups: int) -> None:
    unet = tiny_editor(width).unet
    told = None if width is None else torch.randn(1, width).expand(3 * groups, -1)
    text = torch.randn(1, 5, 16).expand(3 * groups, -1, -1)
    base = torch.randn(groups, 3, 8, 8, 8)

    def out(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return unet(inputs.flatten(0, 1), 10, encoder_hidden_states=text, timestep_cond=told).sample.unflatten(0, (groups, 3))

    alone = out(base)
    with anchored(unet, groups):
        together = out(base)
        other, first = base.clone(), base.clone()
        other[0, 1] += 1
        first[0, 0] += 1
        changed_by_other, changed_by_first = ((out(x) - together).abs().flatten(2).amax(2) > 1e-5 for x in (other, first))
    assert torch.allclose(together[:, 0], alone[:, 0], atol=1e-5)  # the anchor attends to itself
    assert changed_by_other.tolist() == [[False, True, False]] + [[False] * 3] * (groups - 1)
    assert changed_by_first.tolist() == [[True, True, True]] + [[False] * 3] * (groups - 1)
    assert torch.equal(out(base), alone)  # and afterwards all is as before


def test_every_frame_is_edited_whatever_the_chunk() -> None:
    video = clip(11, 16, 16)
    adapter = Decorruptor(tiny_editor(6), DecorruptorOptions(steps=1))
    whole = torch.cat(list(edit_clip(adapter, video, chunk=4)))
    assert whole.shape == video.frames.shape
    assert (whole.int() - torch.cat(list(edit_clip(adapter, video, chunk=11))).int()).abs().max() <= 1


def test_an_adapter_of_one_size_gets_the_frames_so() -> None:
    class Square(Adapter):
        image_size = 16

        def adapt(self, x: Tensor, generators: object) -> Tensor:
            assert x.shape[-2:] == (16, 16)
            return x

    video = clip()
    assert torch.cat(list(edit_clip(Square(), video))).shape == video.frames.shape


def test_bright_frames_are_not_taken_for_another_range() -> None:
    seen: list[Tensor] = []

    class Watch(Adapter):
        def adapt(self, x: Tensor, generators: object) -> Tensor:
            seen.append(x)
            return x

    frames = torch.randint(153, 204, (2, 3, 8, 8)).to(torch.uint8)
    assert torch.equal(next(edit_clip(Watch(), Clip(frames, NTSC))), frames) and seen[0].min() > 0


def test_two_numbers() -> None:
    still = clip(1).frames.repeat(4, 1, 1, 1)
    assert neighbour_psnr(still) == pytest.approx(100) and neighbour_psnr(clip().frames) < 40
    assert label_flips([1, 1, 2, 1, 1]) == 0.5 and label_flips([3]) == 0


def test_the_command(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", clip(5))
    save_folder(tiny_editor(6), tmp_path / "editor")
    done = run_script(
        "image_adapt/scripts/video_edit.py", tmp_path / "in.mp4", "--out", tmp_path / "out.mp4", "--adapter", "decorruptor",
        "--model_path", tmp_path / "editor", "--steps", 1, "--compare", tmp_path / "both.mp4",
    ).check()  # fmt: skip
    assert "PSNR" in done.out and len(read_clip(tmp_path / "out.mp4").frames) == 5
    assert read_clip(tmp_path / "both.mp4").frames.shape[-1] == 96 and read_clip(tmp_path / "out.mp4").rate == NTSC
