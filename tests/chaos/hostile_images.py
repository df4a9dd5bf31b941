"""About 100 odd and hostile files of an image folder, made here: damaged, lying about their size,
of formats that start programs, with names and kinds of files that nobody expects.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.photo_like import photo_like, save_all, to_array

SIDE = 32
GOOD = 12  # plain pictures of each class


class Payload:
    """Unpickled, it makes a file: the proof that a stranger's code was run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def picture(file_format: str = "PNG", side: int = SIDE, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(to_array(photo_like(1, side)[0])).convert(mode).save(out, file_format, **options)
    return out.getvalue()


# --- PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """A PNG with this header, whatever follows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def black(width: int, height: int) -> bytes:
    """The pixels of a PNG of zeros, whose zlib stream is made without holding them."""
    stream, row = zlib.compressobj(9), bytes(1 + 3 * width)
    return chunk(b"IDAT", b"".join([*(stream.compress(row) for _ in range(height)), stream.flush()]))


def pngs() -> Iterator[tuple[str, bytes, bool]]:
    """(name, bytes, whether it is a whole picture)."""
    whole = picture()
    for share in (0.02, 0.1, 0.5, 0.9):
        yield f"png_cut_{share}.png", whole[: int(share * len(whole))], False
    yield "png_signature_alone.png", whole[:8], False
    yield "png_wrong_checksum.png", whole[:29] + bytes([whole[29] ^ 1]) + whole[30:], False
    yield "png_wrong_pixels.png", whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :], False
    yield "png_without_pixels.png", png(SIDE, SIDE), False
    yield "png_of_no_size.png", png(0, 0, black(1, 1)), False
    yield "png_50000_wide.png", png(50000, 50000, black(10, 10)), False
    yield "png_header_of_2_billion.png", png(2**31 - 1, 2**31 - 1, black(10, 10)), False
    yield "png_bomb_13000.png", png(13000, 13000, black(13000, 13000)), False
    yield "png_depth_3.png", png(SIDE, SIDE, black(SIDE, SIDE), depth=3), False
    yield "png_colour_9.png", png(SIDE, SIDE, black(SIDE, SIDE), colour=9), False
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(64 << 20), 9))
    yield "png_text_bomb.png", png(SIDE, SIDE, text, black(SIDE, SIDE)), False
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"no profile"))
    yield "png_no_profile.png", png(SIDE, SIDE, profile, black(SIDE, SIDE)), True
    yield "png_odd_exif.png", png(SIDE, SIDE, chunk(b"eXIf", exif((0x0112, 5, 1, 3, b""))), black(SIDE, SIDE)), True
    yield "png_and_more.png", whole + b"more" * 1000, True
    yield "png_grey.png", picture(mode="L"), True
    yield "png_palette.png", picture(mode="P"), True
    yield "png_transparent.png", picture(mode="RGBA"), True
    yield "png_one_bit.png", picture(mode="1"), True
    yield "png_1_x_1.png", picture(side=1), True


# --- EXIF, in the bytes of TIFF


def exif(*entries: tuple[int, int, int, int, bytes], following: int = 0) -> bytes:
    """A directory of entries (tag, type, count, value or place) and what they may point at."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    rows = b"".join(struct.pack("<HHII", *entry[:4]) for entry in entries)
    return head + rows + struct.pack("<I", following) + b"".join(entry[4] for entry in entries)


def with_exif(data: bytes) -> bytes:
    block = b"Exif\0\0" + data
    whole = picture("JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]


def oddities_of_exif() -> Iterator[tuple[str, bytes, bool]]:
    """Whole pictures, whatever stands in their EXIF."""
    ten = struct.pack("<II", 7, 0)
    kinds = {
        "orientation_6": exif((0x0112, 3, 1, 6, b"")),
        "orientation_99": exif((0x0112, 3, 1, 99, b"")),
        "orientation_as_rational": exif((0x0112, 5, 1, 26, ten)),
        "orientation_as_text": exif((0x0112, 2, 4, 0x00363636, b"")),
        "orientation_of_many": exif((0x0112, 3, 1000, 26, bytes(2000))),
        "text_as_rational": exif((0x011A, 5, 1, 26, b"72 dots")),
        "rational_as_short": exif((0x011A, 3, 2, 0x00010048, b"")),
        "negative_as_unsigned": exif((0x011A, 4, 1, 0xFFFFFFFF, b"")),
        "by_zero": exif((0x829A, 5, 1, 26, ten)),
        "unknown_type": exif((0x0100, 99, 1, 5, b"")),
        "a_billion_entries": exif((0x010E, 2, 2**30, 26, b"short")),
        "place_outside": exif((0x010E, 2, 100, 2**31, b"")),
        "circle": exif((0x8769, 4, 1, 8, b""), following=8),
        "cut": exif((0x0112, 3, 1, 6, b""))[:11],
        "nothing": b"",
        "no_tiff": b"not a directory",
        "maker_notes": exif((0x927C, 7, 4, 0xFFFFFFFF, b"")),
        "latin": exif((0x013B, 2, 4, 0x00FCE9E8, b"")),
    }
    for name, data in kinds.items():
        yield f"exif_{name}.jpg", with_exif(data), True


# --- other formats


def others(marker: Path) -> Iterator[tuple[str, bytes, bool]]:
    whole = picture("JPEG")
    yield "jpeg_cut.jpg", whole[: len(whole) // 2], False
    yield "jpeg_start_alone.jpg", whole[:2], False
    sizes = whole.index(b"\xff\xc0") + 5
    yield "jpeg_65500_wide.jpg", whole[:sizes] + struct.pack(">HH", 65500, 65500) + whole[sizes + 4 :], False
    yield "jpeg_noise.jpg", whole[:300] + np.random.default_rng(0).bytes(2000), False
    yield "jpeg_cmyk.jpg", picture("JPEG", mode="CMYK"), True
    yield "jpeg_called_png.png", whole, True
    yield "JPEG_UPPER.JPEG", whole, True
    yield "gif_cut.gif", picture("GIF")[:60], False
    yield "gif_whole.gif", picture("GIF"), True
    yield "gif_of_no_size.gif", b"GIF89a" + bytes(7) + b";", False
    yield "bmp_40000_wide.bmp", _bmp(40000, 40000), False
    yield "bmp_negative.bmp", _bmp(-5, 7), False
    yield "bmp_whole.bmp", picture("BMP"), True
    yield "webp_cut.webp", picture("WEBP")[:40], False
    yield "webp_whole.webp", picture("WEBP"), True
    yield "ppm_header_of_billions.ppm", b"P6 99999 99999 255\n" + bytes(100), False
    yield "ppm_words.ppm", b"P6 wide high 255\n", False
    yield "ppm_whole.ppm", picture("PPM"), True
    yield "tiff_circle.tif", exif((0x0100, 3, 1, 32, b""), following=8), False
    yield "tiff_whole.tif", picture("TIFF"), True
    yield "tiff_floats.tif", picture("TIFF", mode="F"), False
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n"
    script += f"(%pipe%touch '{marker}') (w) file closefile showpage\n%%EOF\n".encode()
    for suffix in ("png", "jpg", "eps"):
        yield f"postscript.{suffix}", script, suffix == "eps"
    yield "pickle.png", pickle.dumps(Payload(marker)), False
    yield "page.jpg", b"<html><body>404 not found</body></html>", False
    yield "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', False
    yield "archive.png", b"PK\x03\x04" + bytes(100), False
    yield "icon.png", picture("ICO"), False
    yield "bitmap.png", b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {1,2,3,4,5,6,7,8};\n", False
    yield "photoshop.png", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 50000, 50000, 8, 3) + bytes(100), False
    yield "fits.png", b"SIMPLE  =                    T" + b" " * 2850, False
    yield "empty.png", b"", False
    yield "empty.jpg", b"", False
    yield "one_byte.jpg", b"\xff", False
    yield "zeros.png", bytes(4096), False
    yield "noise.png", np.random.default_rng(1).bytes(4096), False


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)


NAMES = [
    b"tab\there.png", b"line\nbreak.png", b"latin-\xe9.png", b"\xff\xfe.png", b" space .png", b"-rf.png", b"quote'\".png",
    b"a,b;c.png", b"\x1b[31mred.png", b"back\\slash.png", b"%2e%2e%2fup.png", b"..png", b"dots..png",
    "n\u0303 \u202e \U0001f600.png".encode(), b"{dataset}.png", b"*.png", b"#7.png", b"x" * 251 + b".png", b"same.png", b"same.jpg",
    b"same.png.gif", b"y" * 251 + b".png", b"y" * 251 + b".jpg", b"c.jpg",
]  # fmt: skip


def build(root: Path, marker: Path) -> dict[bool, list[bytes]]:
    """`<root>/{a,b}/*` with all of them, and plain pictures.

    Returns:
        names relative to `root`: of whole pictures, and of files that are none.
    """
    listed: dict[bool, list[bytes]] = {True: [], False: []}
    save_all(root, [f"{c}/good_{i}.png" for c in "ab" for i in range(GOOD)], photo_like(2 * GOOD, SIDE))
    for number, (name, data, whole) in enumerate([*pngs(), *oddities_of_exif(), *others(marker)]):
        path = root / "ab"[number % 2] / name
        path.write_bytes(data)
        if not name.endswith(".eps"):  # no suffix of an image
            listed[whole].append(os.fsencode(path.relative_to(root)))
    a = os.fsencode(root / "a")
    for name in NAMES:
        with open(a + b"/" + name, "wb") as file:
            file.write(picture("JPEG" if name.endswith(b"jpg") else "PNG"))
    (root / "a/c.png").mkdir()
    (root / "a/c.png/below.png").write_bytes(picture())
    _special(root / "b")
    return listed


def _special(folder: Path) -> None:
    """What is no file: pipes, sockets, links to nothing, to themselves and upwards."""
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.open(folder, os.O_RDONLY)
        opened.bind(f"/proc/self/fd/{here}/socket.png")  # the length of a socket's path is limited
        os.close(here)
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "up").symlink_to("..", target_is_directory=True)
    (folder / "itself").symlink_to(".", target_is_directory=True)
    (folder / "deep").mkdir()
    (folder / "deep/linked.png").symlink_to("../good_0.png")
