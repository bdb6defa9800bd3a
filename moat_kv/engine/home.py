"""What tells a server's own files from all others: a random name beside them, made once.

Asked by `engine.network` under the lock of the copy, so whoever has the same one has gone.
"""

from __future__ import annotations

import pathlib
import secrets

from moat_kv import errors
from moat_kv.engine import file_errors

#: The length of a name, in characters.
LENGTH = 32


def of(file: pathlib.Path) -> str:
    """The name that is kept in `FILE.home`; a new one if there is none. Raises StorageFailed."""
    place = file.with_name(file.name + ".home")
    try:
        if place.exists() and len(found := place.read_text("ascii", "replace").strip()) == LENGTH:
            return found
        name = secrets.token_hex(LENGTH // 2)
        half = place.with_name(place.name + ".new")
        half.write_text(name + "\n", "ascii")
        half.replace(place)
    except OSError as exc:
        raise errors.StorageFailed(str(place), file_errors.reason_of(exc, place)) from exc
    return name
