"""Image files: which names are theirs, and their pixels in 8 bits, whatever the file holds."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from train.data.types import DataError, require

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

BACKGROUND = (255, 255, 255)
"""The colour below pixels that are transparent: white."""

# How Pillow undoes an orientation, by the number in the EXIF data.
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

# Pixels of 16 bits in any order of bytes; others that Pillow shows with more than 8 bits.
_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_32_BITS = ("I", "F")

# Tags of a TIFF file.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

# Values of Pillow for one step of a grey PNG of few bits.
_STEPS = {"1": 255, "L;2": 85, "L;4": 17}

# Formats of files with several frames that were mentioned: once in a process, not for each file.
_told: set[str] = set()


def is_image(file: Path) -> bool:
    """Whether a file is read as an image, which its suffix alone says."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def report_left_out(place: Path, kinds: Iterable[str], images: int) -> str:
    """Says how many files were not read, and returns it as a note; "" if there are none.

    Args:
      place: the folder or archive.
      kinds: the kind of each file that was not read, from `kind_of`.
      images: how many were read.
    """
    counts = Counter(kinds)
    if not counts:
        return ""
    # The most frequent first, and few: numbers in the place of suffixes would make a long list.
    shown = sorted(counts, key=lambda kind: (-counts[kind], kind))[:5]
    listed = ", ".join(f"{kind} {counts[kind]}" for kind in shown)
    listed += ", ..." if len(counts) > 5 else ""
    note = f"{counts.total()} of {counts.total() + images} files left out: {listed}"
    _log.warning("%s: %s; images end in %s", place, note, ", ".join(IMAGE_SUFFIXES))
    return note


def kind_of(file: Path) -> str:
    """What a list of files that were not read calls this file."""
    return file.suffix.lower() or "no suffix"


def read_image(source: Path | IO[bytes], name: str, mode: Literal["RGB", "L"]) -> Any:
    """Decodes an image file to 8 bits; docs/howto/experiments.md has the table of what it does.

    Args:
      source: the file, or its content.
      name: what errors call the file.
      mode: three channels or one.

    Returns:
      A Pillow image of that mode, upright, without transparency.

    Raises:
      DataError: the file cannot be read, or holds numbers of which black and white are not known.
    """
    pillow = require("PIL.Image", "an image file")
    try:
        with pillow.open(source) as file:
            _require_known_range(file, name)
            _mention_frames(file, name)
            _rescale_transparent_value(file)
            file.load()
            image = _grey_of_16_bits(pillow, file) if _has_16_bits(file) else file
            return _upright(pillow, file, _rgb(pillow, image)).convert(mode)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {name}: {error}; replace or remove it") from None


def _has_16_bits(file: Any) -> bool:
    # A PGM file of more than 8 bits is scaled to 16 by Pillow. Some versions read a PNG like it.
    return file.mode in _16_BITS or (file.mode == "I" and file.format in ("PNG", "PPM"))


def _require_known_range(file: Any, name: str) -> None:
    """Raises `DataError` if neither the format nor the file says which numbers are black and white.

    The values of the one image would say it for that image alone: scaled by its own extremes, a
    dark image and a bright one become the same.
    """
    if file.mode in _32_BITS and not _has_16_bits(file):
        numbers = "floating-point numbers" if file.mode == "F" else "signed or 32-bit integers"
    elif file.format == "TIFF" and _SIGNED in _tag(file, _SAMPLE_FORMAT):
        # Pillow takes signed bytes for unsigned ones.
        numbers = "signed integers"
    else:
        return
    raise DataError(
        f"the image {name} holds {numbers}, of which black and white are not known: save it with 8 "
        "or 16 unsigned bits"
    )


def _mention_frames(file: Any, name: str) -> None:
    # The further pictures of an MPO file, a kind of JPEG, are previews or for the other eye.
    several = getattr(file, "is_animated", False) and file.format != "MPO"
    if several and file.format not in _told:
        _told.add(file.format)
        _log.warning(
            "%s has %d frames: of this and other %s files only the first frame is read",
            name,
            file.n_frames,
            file.format,
        )


def _rescale_transparent_value(file: Any) -> None:
    """Gives the transparent colour of a PNG on the scale of its pixels; call it before they load.

    Pillow scales pixels of 1, 2 or 4 bits up to 8 and cuts those of three times 16 bits down to 8,
    but not the colour that it compares them with. (It may have scaled the one of 1 bit.)
    """
    value = file.info.get("transparency")
    if file.format != "PNG" or value is None or not file.tile:
        return
    raw = file.tile[0][3]
    if raw in _STEPS:
        file.info["transparency"] = min(value * _STEPS[raw], 255)
    elif raw == "RGB;16B":
        file.info["transparency"] = tuple(channel >> 8 for channel in value)


def _grey_of_16_bits(pillow: Any, file: Any) -> Any:
    """The upper 8 of the bits of each pixel, as Pillow takes them of colours with 16 bits."""
    values = np.asarray(file).astype(np.int32)
    bits = 16
    if file.format == "TIFF":
        (bits,) = _tag(file, _BITS)  # some cameras write 12
        if _tag(file, _PHOTOMETRIC)[0] == _WHITE_IS_ZERO:
            values = 2**bits - 1 - values
    grey = (values >> (bits - 8)).astype(np.uint8)
    if "transparency" in file.info:
        grey[values == file.info["transparency"]] = BACKGROUND[0]
    return pillow.fromarray(grey)


def _rgb(pillow: Any, image: Any) -> Any:
    """The image in RGB, on the background where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Grey that is multiplied by its transparency has no direct way to RGB in Pillow.
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    ground = pillow.new("RGB", image.size, BACKGROUND)
    ground.paste(image, mask=image)
    return ground


def _upright(pillow: Any, file: Any, image: Any) -> Any:
    """The image, turned and mirrored as the EXIF data of its file say."""
    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow has no common error for damaged EXIF data; the pixels are whole.
        return image
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(pillow.Transpose[turn])


def _tag(file: Any, number: int) -> tuple[int, ...]:
    value = file.tag_v2.get(number, (1,))
    return value if isinstance(value, tuple) else (value,)
