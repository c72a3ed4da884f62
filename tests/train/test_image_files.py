import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.train.published import write_tar
from train.data import image_files
from train.data.image_files import read_image
from train.data.image_tree import image_tree
from train.data.load import load
from train.data.types import DataError

LEVELS = np.arange(256).reshape(16, 16)
EXIF_ORIENTATION = 0x0112
W = (255, 255, 255)


def read(content, mode="RGB"):
    return np.asarray(read_image(io.BytesIO(content), "a.png", mode))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(bits, colour, rows, transparent):
    """A PNG of a depth or with a transparent colour that Pillow does not write.

    `rows` is the width with the bytes of each row.
    """

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    width, data = rows
    header = struct.pack(">IIBBBBB", width, len(data), bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", transparent)
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in data)))
        + chunk(b"IEND", b"")
    )


def tiff(data, *, width, height, bits=(16,), photometric=1, sample_format=1, extra=None):
    """A TIFF file of a kind that Pillow does not write."""
    tags = {256: width, 257: height, 258: bits[0], 259: 1, 262: photometric, 273: 0}
    tags |= {277: len(bits), 278: height, 279: len(data), 339: sample_format}
    counts = dict.fromkeys(tags, 1)
    if len(bits) == 2:
        # Two short numbers stand in the place of one long number.
        tags[258], counts[258] = bits[0] | bits[1] << 16, 2
    if extra is not None:
        tags[338], counts[338] = extra, 1
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, counts[tag], tags[tag])
        for tag in sorted(tags)
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def pgm(values, most):
    height, width = values.shape
    return b"P5 %d %d %d\n" % (width, height, most) + values.astype(">u2").tobytes()


def of_12_bits():
    values = LEVELS << 4 | LEVELS >> 4
    first, second = values.ravel()[::2], values.ravel()[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    return tiff(packed.astype(np.uint8).tobytes(), width=16, height=16, bits=(12,))


WIDE = (LEVELS * 257).astype(np.uint16)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(WIDE), "png"),
        saved(Image.fromarray(WIDE), "tiff"),
        saved(Image.fromarray(WIDE), "tiff", compression="tiff_lzw"),
        saved(Image.frombytes("I;16B", (16, 16), WIDE.astype(">u2").tobytes()), "tiff"),
        pgm(WIDE, 65535),
        b"P2 16 16 65535\n" + " ".join(map(str, WIDE.ravel())).encode(),
        tiff((65535 - WIDE).astype("<u2").tobytes(), width=16, height=16, photometric=0),
        of_12_bits(),
    ],
    ids=["png", "tiff", "lzw", "big-endian", "pgm", "plain pgm", "white is 0", "12 bits"],
)
def test_8_bits_that_were_stored_as_more_come_back(content, mode):
    image = read(content, mode)
    expected = LEVELS if mode == "L" else np.repeat(LEVELS[..., None], 3, axis=-1)
    np.testing.assert_array_equal(image, expected)


def test_the_largest_number_of_a_pgm_is_white():
    values = np.array([[0, 100, 512, 1023]])
    np.testing.assert_allclose(read(pgm(values, 1023), "L"), values * 255 / 1023, atol=1)


def test_colours_of_16_bits_lose_their_lower_8():
    values = np.array([0, 255, 256, 32768, 65279, 65535])
    # One bit of the transparent colour differs in the lower byte: nothing is transparent.
    content = png(16, 2, (2, [values.astype(">u2").tobytes()]), struct.pack(">3H", 1, 2, 3))
    np.testing.assert_array_equal(read(content).ravel(), values >> 8)
    grey = png(16, 0, (6, [values.astype(">u2").tobytes()]), struct.pack(">H", 3))
    np.testing.assert_array_equal(read(grey, "L").ravel(), values >> 8)


NUMBERS = np.array([[0.0, 0.25, 1.0]])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (saved(Image.fromarray(NUMBERS.astype(np.float32)), "tiff"), "floating-point numbers"),
        (saved(Image.fromarray((255 * NUMBERS).astype(np.float32)), "tiff"), "floating-point"),
        (b"Pf\n3 1\n-1.0\n" + NUMBERS.astype("<f4").tobytes(), "floating-point numbers"),
        (saved(Image.fromarray(NUMBERS.astype(np.int32)), "tiff"), "signed or 32-bit integers"),
        (
            tiff(np.array([0, -5, 900], "<i2").tobytes(), width=3, height=1, sample_format=2),
            "signed or 32-bit integers",
        ),
        (
            tiff(b"\0\xff\x7f", width=3, height=1, bits=(8,), sample_format=2),
            "signed integers",
        ),
    ],
    ids=["unit floats", "floats", "pfm", "32 bits", "signed 16 bits", "signed 8 bits"],
)
def test_numbers_without_a_known_range_are_refused(content, what, tmp_path):
    for file in ("train/a/0.tif", "train/b/1.tif", "test/a/2.tif"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"train/a/0\.tif holds {what}.*: save it with 8 or 16"):
        load(f"folder:{tmp_path}")


# What EXIF says of row 0 and column 0: where they are in the picture that is to be seen.
UPRIGHT = {
    1: lambda x: x,  # top, left
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.swapaxes(0, 1),  # left, top
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda x: x.swapaxes(0, 1)[::-1],  # left, bottom
}


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "jpeg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_upright(kind, orientation):
    # Even in JPEG a block of 8 × 8 pixels of one colour is exact but for the conversion.
    stored = np.kron(np.arange(0, 180, 30).reshape(2, 3), np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"webp": {"lossless": True}, "jpeg": {"quality": 100}}.get(kind, {})
    image = Image.fromarray(np.repeat(stored[..., None], 3, axis=-1))
    found = read(saved(image, kind, exif=exif, **options))[..., 0]
    expected = UPRIGHT[orientation](stored)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


def test_grey_of_16_bits_is_upright():
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    found = read(saved(Image.fromarray(WIDE[:4]), "png", exif=exif), "L")
    np.testing.assert_array_equal(found, UPRIGHT[6](LEVELS[:4]))


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no such data", b"Exif\0\0II*\0"])
def test_damaged_exif_data_do_not_keep_an_image_from_being_read(exif, kind):
    content = saved(Image.new("RGB", (8, 8), W), kind, exif=exif)
    np.testing.assert_array_equal(read(content), np.full((8, 8, 3), 255))


def palette(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    return saved(image, "png", transparency=transparency)


def of_mode(mode, pixels, kind="png", **options):
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return saved(image, kind, **options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (of_mode("RGBA", [(9, 9, 9, 0), (10, 20, 30, 255)]), [W, (10, 20, 30)]),
        (of_mode("RGBA", [(9, 9, 9, 0)], "webp", lossless=True, exact=True), [W]),
        (of_mode("LA", [(9, 0), (10, 255)]), [W, (10, 10, 10)]),
        (palette(0), [W, (40, 50, 60)]),
        (palette(b"\xff\x00"), [(10, 20, 30), W]),
        (of_mode("L", [9, 10], transparency=9), [W, (10, 10, 10)]),
        (of_mode("RGB", [(9, 8, 7), (9, 8, 8)], transparency=(9, 8, 7)), [W, (9, 8, 8)]),
        (of_mode("1", [0, 1], transparency=0), [W, W]),
        (png(1, 0, (2, [b"\x80"]), struct.pack(">H", 0)), [W, W]),
        (png(2, 0, (4, [b"\x1b"]), struct.pack(">H", 1)), [(0,) * 3, W, (170,) * 3, W]),
        (png(4, 0, (2, [b"\x3f"]), struct.pack(">H", 3)), [W, W]),
        (png(16, 0, (2, [b"\0\x09\0\x08"]), struct.pack(">H", 9)), [W, (0, 0, 0)]),
        (png(16, 2, (1, [bytes(range(6))]), bytes(range(6))), [W]),
        (of_mode("PA", [(0, 0), (0, 255)], "tiff"), [W, (0, 0, 0)]),
        (tiff(b"\0\0\x0a\xff", width=2, height=1, bits=(8, 8), extra=1), [W, (10, 10, 10)]),
    ],
    ids=[
        "RGBA",
        "RGBA in WebP",
        "LA",
        "one of a palette",
        "bytes of a palette",
        "L",
        "RGB",
        "1",
        "1 bit",
        "2 bits",
        "4 bits",
        "16 bits",
        "RGB of 16 bits",
        "PA",
        "La",
    ],
)
def test_what_is_transparent_becomes_white(content, expected):
    assert read(content).tolist() == [[list(colour) for colour in expected]]


def test_what_is_half_transparent_is_mixed_with_white():
    content = of_mode("RGBA", [(0, 100, 255, 128)])
    expected = (np.array([0, 100, 255]) * 128 + 255 * 127) / 255
    np.testing.assert_allclose(read(content)[0, 0], expected, atol=0.5)
    assert read(content, "L").shape == (1, 1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (of_mode("1", [0, 1]), [0, 0, 0, 255, 255, 255]),
        (of_mode("L", [3]), [3, 3, 3]),
        (of_mode("RGB", [(1, 2, 3)]), [1, 2, 3]),
        (palette(None), [10, 20, 30, 40, 50, 60]),
        (of_mode("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0)], "tiff"), [255, 255, 255, 0, 255, 255]),
        (of_mode("CMYK", [(255, 0, 0, 0)] * 64, "jpeg", quality=100), [0, 255, 255] * 64),
        (of_mode("LAB", [(0, 128, 128), (255, 128, 128)], "tiff"), [0, 0, 0, 255, 255, 255]),
    ],
    ids=["1", "L", "RGB", "P", "CMYK", "CMYK in JPEG", "LAB"],
)
def test_other_modes_become_rgb(content, expected):
    np.testing.assert_allclose(read(content).ravel().astype(int), expected, atol=1)


def test_the_first_of_several_frames_is_read(monkeypatch, caplog):
    monkeypatch.setattr(image_files, "_told", set())
    frames = [Image.new("L", (2, 2), level) for level in (7, 8, 9)]
    for _ in range(2):
        for kind in ("tiff", "png"):
            content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
            np.testing.assert_array_equal(read(content, "L"), np.full((2, 2), 7))
    assert [record.getMessage() for record in caplog.records] == [
        f"a.png has 3 frames: of this and other {kind} files only the first frame is read"
        for kind in ("TIFF", "PNG")
    ]


def test_the_previews_of_a_photograph_are_not_mentioned(monkeypatch, caplog):
    monkeypatch.setattr(image_files, "_told", set())
    content = saved(
        Image.new("RGB", (8, 8), W), "mpo", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    np.testing.assert_array_equal(read(content), np.full((8, 8, 3), 255))
    assert not caplog.records


def test_classes_that_differ_in_level_stay_different(tmp_path):
    for name, level in (("dark", 5_000), ("light", 40_000)):
        for number in range(5):
            place = tmp_path / name / f"{number}.png"
            place.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4), level, np.uint16)).save(place)
    loaded = load(f"folder:{tmp_path}")
    levels = np.array([5_000 // 256, 40_000 // 256])
    assert loaded.train.images.shape == (8, 4, 4, 3)
    np.testing.assert_array_equal(loaded.train.images[:, 0, 0, 0], levels[loaded.train.labels])


def test_prepare_reads_images_as_a_folder_does(tmp_path):
    def content(digit):
        if digit == 9:
            return of_mode("LA", [(0, 0)] * 6)
        grey = np.full((1, 6), 5_000 * digit, np.uint16)
        return saved(Image.fromarray(grey), "png")

    files = {f"{s}/{d}/0.png": content(d) for s in ("train", "test") for d in range(10)}
    archive = image_tree(write_tar(tmp_path / "a.tar.gz", files), "mnist", (1, 6, 1), None)
    levels = [image[0, 0, 0] for image in archive.splits["train"].images()]
    assert levels == [*(5_000 * digit // 256 for digit in range(9)), 255]
    files["test/4/0.png"] = saved(Image.fromarray(NUMBERS.astype(np.float32)), "tiff")
    archive = image_tree(write_tar(tmp_path / "b.tar.gz", files), "mnist", (1, 6, 1), None)
    with pytest.raises(DataError, match=r"the image 0\.png in .*b\.tar\.gz holds floating-point"):
        list(archive.splits["test"].images())


def write_beside(path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (2, 2)).save(path / name)
        else:
            (path / name).write_bytes(b"")


@pytest.mark.parametrize("split", ["train/{}", "{}"])
def test_files_that_are_left_out_are_counted(split, tmp_path, caplog):
    images = [f"{split.format(name)}/{i}.png" for name in "ab" for i in range(5)]
    others = [f"{split.format('a')}/{i}.HEIC" for i in range(4)]
    others += [f"{split.format('b')}/{name}" for name in ("6.gif", "7", "deep/8.png")]
    hidden = [f"{split.format('b')}/.{name}" for name in ("x", "y.png")]
    write_beside(tmp_path, [*images, *others, *hidden, "README.txt", "unlabelled/a.gif"])
    total = 17
    if "train" in split:
        write_beside(tmp_path, ["test/a/0.png"])
        total = 18
    note = f"7 of {total} files left out: .heic 4, .gif 1, folders 1, no suffix 1"
    source_note = load(f"folder:{tmp_path}").source_note
    assert source_note.endswith(note)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{tmp_path}: {note}; images end in .png, ")


def test_unlabelled_files_that_are_left_out_are_counted(tmp_path, caplog):
    images = [f"{name}/{i}.png" for name in "ab" for i in range(5)]
    write_beside(tmp_path, [*images, "unlabelled/x/0.png", "unlabelled/x/1.mp4"])
    loaded = load(f"folder:{tmp_path}", unlabelled=True)
    assert loaded.source_note.endswith("; 1 of 12 files left out: .mp4 1")
    caplog.clear()
    assert "left out" not in load(f"folder:{tmp_path}").source_note
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("packed", [False, True])
def test_prepare_counts_the_files_that_it_leaves_out(packed, tmp_path, caplog):
    names = [f"{split}/{digit}/0.png" for split in ("train", "test") for digit in range(10)]
    write_beside(tmp_path / "x", [*names, "train/3/1.heic", "test/4/notes.txt", "extra/1/a.txt"])
    source = tmp_path / "x"
    if packed:
        files = {name: (source / name).read_bytes() for name in names}
        source = write_tar(
            tmp_path / "a.tar.gz", {**files, "train/3/1.heic": b"", "test/4/notes.txt": b""}
        )
    else:
        (source / "train/3/folder").mkdir()
    image_tree(source, "mnist", (2, 2, 1), None)
    (record,) = caplog.records
    assert "2 of 22 files left out: .heic 1, .txt 1" in record.getMessage()


def test_a_long_list_of_suffixes_is_cut(tmp_path, caplog):
    note = image_files.report_left_out(tmp_path, [f".{i}" for i in range(7)], 3)
    assert note == "7 of 10 files left out: .0 1, .1 1, .2 1, .3 1, .4 1, ..."
