"""The manifests: what they name is there, compiles, and needs nothing that is not stored."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv.code import compiling, requires
from moat_kv.path import P
from tests.onewire import stored

FOLDERS = ["onewire", "demo"]
KEYS = {
    "modules": {"file", "path", "requires", "info"},
    "code": {"file", "path", "is_async", "vars", "default", "requires", "info"},
    "jobs": {
        "run",
        "path",
        "node",
        "group",
        "code",
        "data",
        "target",
        "delay",
        "repeat",
        "backoff",
        "ok_after",
        "on_split",
        "isolate",
        "enabled",
        "info",
    },
}


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def stored_modules() -> set[str]:
    return {item["path"] for name in FOLDERS for item in stored.manifest(name).get("modules", [])}


def test_only_known_keys_are_used(folder: str) -> None:
    read = stored.manifest(folder)
    assert set(read) <= set(KEYS)
    for section, known in KEYS.items():
        for item in read.get(section, []):
            assert set(item) <= known
            assert P(item["path"])


def test_modules_compile_and_name_what_they_import(folder: str) -> None:
    for item in stored.manifest(folder).get("modules", []):
        text = (stored.EXAMPLES / folder / item["file"]).read_text()
        module = compiling.compile_module(text, name=item["path"])
        named = set(requires.parse(item.get("requires")).stored)
        assert named <= stored_modules()
        assert {name for name in stored_modules() if name in module.imports} == named


def test_procedures_compile_and_name_what_they_import(folder: str) -> None:
    for item in stored.manifest(folder)["code"]:
        compiled, defaults = stored.procedure(folder, item["path"])
        named = set(requires.parse(item.get("requires")).stored)
        assert named <= stored_modules()
        assert {name for name in stored_modules() if name in compiled.imports} == named
        assert set(defaults) == set(compiled.variables)


def test_jobs_run_stored_code_with_variables_that_it_has(folder: str) -> None:
    read = stored.manifest(folder)
    code = {item["path"]: item for item in read["code"]}
    for job in read["jobs"]:
        assert job["run"] in ("at", "any", "all")
        data: dict[str, Any] = job.get("data", {})
        assert set(data) <= set(code[job["code"]]["vars"])


def test_every_file_of_the_folder_is_stored(folder: str) -> None:
    read = stored.manifest(folder)
    named = {item["file"] for section in ("modules", "code") for item in read.get(section, [])}
    assert named == {file.name for file in (stored.EXAMPLES / folder).glob("*.py")}
