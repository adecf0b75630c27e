"""Text burned into pixels, read by the system's ``tesseract``, where there is one.

The image goes down a pipe and its text comes back: nothing is written.
"""

import io
import shutil
import subprocess
from typing import Final

from PIL import Image, ImageOps

MAX_PIXELS: Final = 64_000_000
_LONGEST_SIDE = 2_000
_TIMEOUT_SECONDS = 60.0
_CONFIDENCE = 60.0
_MIN_CHARACTERS = 3
ABSENT: Final = (
    "text burned into pixels: tesseract is not installed (apt-get install tesseract-ocr)"
)
NOT_ASKED: Final = "text burned into pixels: not asked for (--ocr)"


class UnreadableImageError(Exception):
    """An image cannot be decoded, or not read in time. Stays inside the scanner."""


def is_available() -> bool:
    """Whether the system can read text in images."""
    return shutil.which("tesseract") is not None


def words_in_file(data: bytes) -> list[str]:
    """The words that are surely seen in an encoded image.

    Raises:
        UnreadableImageError: it cannot be decoded, or not read in time.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError
            grey = image.convert("L")
    except UnreadableImageError:
        raise
    # Pillow's decoders raise whatever their format's parser raises on damaged bytes.
    except Exception as error:
        raise UnreadableImageError from error
    return words_in(grey)


def words_in(grey: Image.Image) -> list[str]:
    """The words that are surely seen in a grey image.

    Raises:
        UnreadableImageError: not read in time, or the program failed.
    """
    grey.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    # It expects dark text on white; a photograph of a retina is dark around its circle.
    if sum(grey.resize((16, 16)).tobytes()) < 128 * 256:
        grey = ImageOps.invert(grey)
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    try:
        run = subprocess.run(
            # Threads make it slower on images of this size.
            [
                "env",
                "OMP_THREAD_LIMIT=1",
                "tesseract",
                "stdin",
                "stdout",
                "--psm",
                "11",
                "-l",
                "eng",
                "tsv",
            ],
            input=buffer.getvalue(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UnreadableImageError from error
    return _sure_words(run.stdout.decode("utf-8", "replace"))


def _sure_words(table: str) -> list[str]:
    words = []
    for line in table.splitlines()[1:]:
        fields = line.split("\t")
        if len(fields) != 12:
            continue
        word = fields[11].strip()
        is_word = sum(map(str.isalnum, word)) >= _MIN_CHARACTERS
        if is_word and float(fields[10]) >= _CONFIDENCE:
            words.append(word)
    return words
