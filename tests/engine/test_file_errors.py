"""Places where no log can be: the error says what is wrong, where, and what would be right."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest

from moat_kv import errors
from moat_kv.engine import file_errors, sqlite
from moat_kv.testing import engine_probe


async def refusal(file: pathlib.Path) -> str:
    """Why a log at that place does not open."""
    with pytest.raises(errors.StorageFailed) as caught:
        async with sqlite.SqliteEngine(file).running(engine_probe.DictReplica()):
            raise AssertionError("it opened")
    assert caught.value.file == str(file)
    assert str(caught.value) == f"cannot store in {file}: {caught.value.reason}"
    return str(caught.value.reason)


@pytest.mark.anyio
async def test_a_folder_in_place_of_the_file_is_named_so(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "tree.sqlite"
    file.mkdir()
    assert await refusal(file) == "that is a folder, and has to be a file"


@pytest.mark.anyio
async def test_a_file_in_place_of_a_folder_is_named_so(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "data"
    place.touch()
    for file in (place / "tree.sqlite", place / "more" / "tree.sqlite"):
        assert await refusal(file) == f"{place} is no folder, and has to be one"


@pytest.mark.anyio
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_who_may_not_write_is_told_where(tmp_path: pathlib.Path) -> None:
    for place in (tmp_path, *list(tmp_path.parents)[:3]):
        place.chmod(0o755)
    file = tmp_path / "there" / "tree.sqlite"
    async with sqlite.SqliteEngine(file).running(engine_probe.DictReplica()):
        pass
    file.chmod(0o644)
    lock = file.with_name("tree.sqlite.lock")
    os.seteuid(65534)
    try:
        new = await refusal(tmp_path / "new" / "tree.sqlite")
        locked = await refusal(file)
        os.seteuid(0)
        lock.chmod(0o666)
        os.seteuid(65534)
        present = await refusal(file)
    finally:
        os.seteuid(0)
    allowed = "no permission; user 65534 has to be allowed to write"
    assert new == f"{allowed} in {tmp_path}"
    assert locked == f"{allowed} {lock}"
    assert present == f"{allowed} it"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        pytest.param(errno.ENOSPC, "the disk is full", id="full"),
        pytest.param(errno.EROFS, "the file system is mounted read-only", id="read-only"),
        pytest.param(errno.EIO, "input/output error", id="broken"),
    ],
)
def test_the_path_is_not_given_twice(tmp_path: pathlib.Path, number: int, reason: str) -> None:
    file = tmp_path / "tree.sqlite"
    for exc in (OSError(number, os.strerror(number)), OSError(number, os.strerror(number), file)):
        assert file_errors.reason_of(exc, file) == reason


def test_a_folder_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "no" / "such" / "file"
    exc = FileNotFoundError(errno.ENOENT, "No such file or directory", str(file))
    assert file_errors.reason_of(exc, file) == f"there is no folder {tmp_path / 'no'}"
