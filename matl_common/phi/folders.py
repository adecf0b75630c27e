"""Which files a folder holds, and how a report calls each of them.

A link is followed only where the caller named the files, as the labels' images: those are
read through it. Files of no content (sockets, devices) are not opened.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from matl_common.phi.codes import detect_in_code
from matl_common.phi.findings import Found
from matl_common.phi.showing import shown_name
from matl_common.phi.tokens import codes_of, random_lengths


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or a folder for the sake of its name."""

    path: Path
    shown: str
    in_name: tuple[Found, ...]
    reason: str = ""
    """Why it is not opened."""
    is_folder: bool = False


def entries_of(root: Path, *, key: bytes, is_deep: bool = True) -> Iterator[Entry]:
    """Everything in a folder, sorted by the bytes of its names; or one file.

    Args:
        root: the folder or file.
        key: of the marks that stand for names.
        is_deep: look into folders inside, too, and follow no link.

    Raises:
        OSError: the folder cannot be listed.
    """
    if not root.is_dir():
        yield _entry(root, 1, "", frozenset(), key, follows=True)
        return
    yield from _below(root, "", key, is_deep=is_deep)


def _below(folder: Path, shown_folder: str, key: bytes, *, is_deep: bool) -> Iterator[Entry]:
    names = sorted(os.listdir(folder), key=os.fsencode)
    lengths = random_lengths(code for name in names for code in codes_of(Path(name).stem))
    for number, name in enumerate(names, start=1):
        entry = _entry(folder / name, number, shown_folder, lengths, key, follows=not is_deep)
        yield entry
        if not entry.is_folder or not is_deep:
            continue
        try:
            yield from _below(entry.path, f"{entry.shown}/", key, is_deep=is_deep)
        except OSError:
            yield replace(entry, in_name=(), reason="it is a folder that cannot be listed")


def _entry(
    path: Path,
    number: int,
    shown_folder: str,
    lengths: frozenset[int],
    key: bytes,
    *,
    follows: bool,
) -> Entry:
    is_folder = path.is_dir() and not path.is_symlink()
    name = os.fsencode(path.name).decode("utf-8", "replace")
    stem = name if is_folder else Path(name).stem
    what = "name of the folder" if is_folder else "name of the file"
    in_name = tuple(
        Found(what, hit.category, hit.value) for hit in detect_in_code(stem, lengths=lengths)
    )
    reason = ""
    if path.is_symlink() and not follows:
        reason = "it is a link, which is not followed"
    elif not is_folder and not path.is_file():
        reason = "it is no ordinary file"
    shown = shown_folder + shown_name(name, number, key=key)
    return Entry(path, shown, in_name, reason, is_folder)
