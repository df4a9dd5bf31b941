"""How an image file becomes pixels: colour modes, orientation, size, broken files."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from guided_diffusion.image_datasets import center_crop_arr
from PIL import Image
from torchvision import transforms

from tests.test_folders import write_images
from undegrade.utils.data.sources.folders import folder_source
from undegrade.utils.data.sources.images import INTERPOLATIONS, BrokenImageError, Resize, center_crop, read_image


def test_the_size_is_the_shorter_side_of_the_first_image_unless_given(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat", "dog"], 1, size=(12, 10))
    assert folder_source(tmp_path, None, "pets").image_size == 10
    assert folder_source(tmp_path, 6, "pets").images([0, 1]).shape == (2, 3, 6, 6)


def test_a_photograph_is_turned_upright_by_its_exif_tag(tmp_path: Path) -> None:
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[0, 0] = 255  # upper left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees to view, so that it is upper right
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.argwhere(read_image(tmp_path / "a.png", 8)[0]).tolist() == [[0, 7]]


def exif_of(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF of one value an entry: tag, type, the four bytes of the value or of its place."""
    rows = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", 0)


@pytest.mark.parametrize(
    "entry",
    [
        (0x011A, 2, b"72\0\0"),
        (0x829A, 5, struct.pack("<I", 1 << 30)),
        (0x011A, 3, b"\1\0\0\0"),
        (0x8769, 2, b"x\0\0\0"),
        (0x0100, 99, b"abcd"),
    ],
    ids=["text for a rational", "a rational outside", "a short for a rational", "text for a place", "an unknown type"],
)
def test_damaged_exif_costs_nothing_but_itself(tmp_path: Path, entry: tuple[int, int, bytes]) -> None:
    stored = np.zeros((16, 16, 3), np.uint8)
    stored[:8, :8] = 255
    turn = (0x0112, 3, struct.pack("<HH", 6, 0))
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif_of(turn, entry), quality=100)
    assert (read_image(tmp_path / "a.jpg", 16)[0, :8, 8:] > 250).all()


@pytest.mark.parametrize("value", [b"abcd", struct.pack("<I", 1 << 30), struct.pack("<HH", 9, 0)])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, value: bytes) -> None:
    for kind in (2, 3, 5, 10, 12):
        Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif_of((0x0112, kind, value)))
        assert read_image(tmp_path / "a.jpg", None).shape == (3, 4, 8)


def test_other_formats_of_pillow_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(BrokenImageError, match=r"a\.png: none of the image formats"):
        read_image(tmp_path / "a.png", 8)
    for name in ("a.ico", "a.pcx", "a.im"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
        with pytest.raises(BrokenImageError):
            read_image(tmp_path / name, 8)


@pytest.mark.parametrize("name", ["a.pgm", "a.pnm", "a.jfif", "a.jpe", "a.jp2", "a.tga", "a.tif", "a.webp", "a.dib", "a.apng"])
def test_formats_of_many_suffixes_are_read(tmp_path: Path, name: str) -> None:
    Image.new("L", (6, 6), 90).convert("L" if name in ("a.pgm", "a.jp2") else "RGB").save(
        tmp_path / name, **({"format": "JPEG"} if name in ("a.jfif", "a.jpe") else {"format": "PNG"} if name == "a.apng" else {})
    )
    assert (abs(read_image(tmp_path / name, 6).astype(int) - 90) <= 1).all()


def test_sixteen_bit_pgm_is_scaled_as_png_is(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257, 65535))
    assert read_image(tmp_path / "a.pgm", None)[0].tolist() == [[1, 255]]


def png_of(width: int, height: int) -> bytes:
    """A grey PNG whose header says so; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize("side", [13000, 60000])
def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_of(side, side) + b"\0\0\0\4IDATabcd")
    with pytest.raises(BrokenImageError, match=r"a\.png: more than the 89,478,485 pixels"):
        read_image(tmp_path / "a.png", 8)


@pytest.mark.parametrize("error", [struct.error("x"), TypeError("x"), zlib.error("x"), RecursionError(), MemoryError()])
def test_whatever_a_decoder_raises_is_a_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(_: Image.Image) -> None:
        raise error

    Image.new("RGB", (4, 4)).save(tmp_path / "a.bmp")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(BrokenImageError, match=rf"a\.bmp: {type(error).__name__}"):
        read_image(tmp_path / "a.bmp", 4)


def test_a_message_is_one_line_of_text_whatever_the_name(tmp_path: Path) -> None:
    name = "caf\udce9\tof\nmine.png"
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(BrokenImageError) as caught:
        read_image(tmp_path / name, 8)
    assert str(caught.value).isprintable() and r"/caf\xe9\tof\nmine.png: none" in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 90, (90, 90, 90)), ("LA", (90, 10), (90, 90, 90)), ("RGBA", (1, 2, 3, 0), (1, 2, 3)), ("1", 1, (255, 255, 255)),
     ("RGB", (1, 2, 3), (1, 2, 3))],
)  # fmt: skip
def test_every_mode_becomes_rgb_and_alpha_is_dropped(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 4)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 4, 4))
    assert (pixels == np.array(expected)[:, None, None]).all()


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(tmp_path / "a.gif")
    assert read_image(tmp_path / "a.gif", 4)[:, 0, 0].tolist() == [9, 8, 7]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257], [128, 65535]], np.uint16)  # 128 / 257 rounds down
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        assert read_image(tmp_path / name, 2)[1].tolist() == [[0, 1], [0, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused_by_name(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.full((4, 4), 7, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImageError, match=r"a\.tif: its pixels \([IF]\) are 32-bit numbers of unknown range"):
        read_image(tmp_path / "a.tif", 4)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 4)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_is_its_first_frame(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / name, 8) > 250).all()


def test_an_image_smaller_than_allowed_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 9)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 8, smallest=4).shape == (3, 8, 8)
    with pytest.raises(BrokenImageError, match=r"a\.png: 4 x 9 px is too small to be enlarged to 8"):
        read_image(tmp_path / "a.png", 8, smallest=5)


def grid(width: int, height: int) -> Image.Image:
    """Grey image whose pixel at (x, y) is 10 x + y."""
    return Image.fromarray((10 * np.arange(width) + np.arange(height)[:, None]).astype(np.uint8))


def test_an_image_of_the_right_height_is_cropped_in_the_middle() -> None:
    # width 9, size 4: the window starts at column (9 - 4) // 2 = 2
    assert np.array_equal(np.asarray(center_crop(grid(9, 4), 4)), np.asarray(grid(9, 4))[:, 2:6])


def test_an_upright_image_is_cropped_in_the_middle() -> None:
    assert np.array_equal(np.asarray(center_crop(grid(4, 7), 4)), np.asarray(grid(4, 7))[1:5])


def test_an_image_twice_too_large_is_halved_by_block_means() -> None:
    # each 2 x 2 block of 10 x + y: its corner plus (0 + 10 + 1 + 11) / 4 = 5.5, which Pillow rounds
    # up to 6
    expected = np.array([[20 * x + 2 * y + 6 for x in range(2)] for y in range(2)])
    assert np.array_equal(np.asarray(center_crop(grid(4, 4), 2)), expected)


def test_an_image_four_times_too_large_is_halved_twice() -> None:
    # 8 x 8 blocks of 0 and 200 of side 4: two halvings give them back as single pixels
    pixels = np.kron(np.array([[0, 200], [200, 0]]), np.ones((4, 4))).astype(np.uint8)
    assert np.asarray(center_crop(Image.fromarray(pixels), 2)).tolist() == [[0, 200], [200, 0]]


def test_a_smaller_image_is_enlarged_with_its_proportions() -> None:
    # 2 x 4 to size 4: factor 2, 4 x 8, the middle 4 rows; a constant row stays constant
    pixels = np.repeat(np.array([[0], [100], [100], [0]], np.uint8), 2, axis=1)
    result = np.asarray(center_crop(Image.fromarray(pixels), 4))
    assert result.shape == (4, 4)
    assert (result == result[:, :1]).all()
    assert np.array_equal(result, result[::-1])


def test_a_size_between_once_and_twice_is_reached_in_one_bicubic_step() -> None:
    image = grid(12, 9)  # 9 / 6 = 1.5 < 2: no halving; 12 * 6 / 9 = 8 wide, then columns 1..6
    expected = np.asarray(image.resize((8, 6), Image.Resampling.BICUBIC))[:, 1:7]
    assert np.array_equal(np.asarray(center_crop(image, 6)), expected)


SIZES = [(500, 332), (383, 256), (640, 427), (332, 500), (427, 640), (256, 256), (257, 256), (341, 256), (300, 300), (500, 375),
         (375, 500), (200, 133), (99, 1000), (1024, 683), (4, 7), (255, 254), (613, 409)]  # fmt: skip


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_centre_of_a_resized_photograph_is_torchvisions(interpolation: str) -> None:
    mode = transforms.InterpolationMode(interpolation)
    draw = np.random.default_rng(0)
    for width, height in [*SIZES, *draw.integers(20, 700, (40, 2)).tolist()]:
        photo = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for side, size in ((256, 224), (235, 224), (32, 32), (57, 50)):
            expected = transforms.Compose([transforms.Resize(side, mode), transforms.CenterCrop(size)])(photo)
            assert np.array_equal(np.asarray(center_crop(photo, size, Resize(side, interpolation))), np.asarray(expected))


def test_the_whole_shorter_side_is_taken_as_guided_diffusion_does() -> None:
    draw = np.random.default_rng(0)
    for width, height in [*SIZES, *draw.integers(20, 1200, (20, 2)).tolist()]:
        photo = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for size in (64, 256):
            assert np.array_equal(np.asarray(center_crop(photo, size)), center_crop_arr(photo, size))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.tif", "a.ppm"])
def test_a_truncated_file_is_reported_by_its_name_in_every_format(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    assert read_image(path, 40).shape == (3, 40, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(BrokenImageError, match=re.escape(f"{path}: ")):
        read_image(path, 40)
