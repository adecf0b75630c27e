"""164.312(a)(2)(iv): what lies on disk and in the database cannot be read there."""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.site import Site, at_coordinator
from matl_common.errors import IntegrityError

_PRIVATE_KEY: Final = b"PRIVATE KEY-----"
_OTHERS: Final = stat.S_IROTH | stat.S_IWOTH
_CRYPT: Final = "CRYPT-"


def entries(site: Site) -> Outcome:
    """Find the canary's row, look into it, open it, and change it."""
    log = at_coordinator(site).log
    canary = log.canary
    stored = log.stored(canary.index)
    word, payload = canary.word.encode(), stored.payload or b""
    if word in payload or word in (stored.leaf or b""):
        raise BrokenControlError(
            f"entry {canary.index} lies in the database in the clear",
            "stop the coordinator: this version does not encrypt its log",
        )
    if log.opened(stored, payload).get("word") != canary.word:
        raise BrokenControlError(
            f"entry {canary.index} says something else than was written", "matl audit verify"
        )
    # One bit each of nonce, ciphertext and tag.
    for place in (0, len(payload) // 2, len(payload) - 1):
        changed = bytearray(payload)
        changed[place] ^= 1
        try:
            log.opened(stored, bytes(changed))
        except IntegrityError:
            continue
        raise BrokenControlError(
            f"entry {canary.index} still opens with a bit changed at byte {place}",
            "stop the coordinator: this version does not authenticate its log",
        )
    return passed(
        f"entry {canary.index}: {len(payload)} bytes without the word that was written; opens with "
        "its data key; refused with a bit changed in nonce, ciphertext or tag"
    )


def files(site: Site) -> Outcome:
    """Search the state folder for the canary, keys in PEM, and modes that let others in."""
    here = at_coordinator(site)
    word = here.log.canary.word.encode()
    count = size = 0
    for path in _files_below(here.state_dir):
        mode = path.stat().st_mode
        if mode & _OTHERS and _is_reachable(path.parent):
            raise BrokenControlError(
                f"every account can read {path}", f"chmod -R o-rwx {here.state_dir}"
            )
        for secret, what in ((word, "an entry of the log"), (_PRIVATE_KEY, "a private key")):
            if _holds(path, secret):
                raise BrokenControlError(
                    f"{path} holds {what} in the clear",
                    "find out what wrote it there, remove it, and replace the key",
                )
        count, size = count + 1, size + path.stat().st_size
    return passed(
        f"{count} files, {size / 1e6:.1f} MB: the word of entry {here.log.canary.index} is in "
        "none, nor a private key in PEM, and no other account reads them. Models are not "
        "encrypted: hospitals get them, with the noise that they bear"
    )


def disk(site: Site) -> Outcome:
    """Follow the state folder's device down to dm-crypt."""
    device = os.stat(site.state_dir).st_dev
    seen: set[str] = set()
    pending = [f"{os.major(device)}:{os.minor(device)}"]
    while pending:
        number = pending.pop()
        if number in seen:
            continue
        seen.add(number)
        node = Path("/sys/dev/block") / number
        uuid = node / "dm" / "uuid"
        if uuid.exists() and uuid.read_text().startswith(_CRYPT):
            return passed(f"{site.state_dir} lies on dm-crypt ({uuid.read_text().split('-')[1]})")
        for below in sorted((node / "slaves").glob("*/dev")):
            pending.append(below.read_text().strip())
    raise NotTestedError(
        f"no dm-crypt below {site.state_dir}; encryption elsewhere cannot be seen from here",
        "encrypt the volume, or put on record who does",
    )


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def _is_reachable(folder: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.resolve().parents))


def _holds(path: Path, secret: bytes) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return re.search(re.escape(secret), content) is not None
