"""The manifests: what they name is there, compiles, and needs nothing that is not stored."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv.code import compiling, requires
from moat_kv_cli import manifest
from tests.onewire import stored

FOLDERS = ["onewire", "demo"]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def stored_modules() -> set[str]:
    return {item["path"] for name in FOLDERS for item in stored.manifest(name).get("modules", [])}


def test_loader_takes_the_manifest(folder: str) -> None:
    found = manifest.read(stored.EXAMPLES / folder)
    read = stored.manifest(folder)
    assert len(found.modules) == len(read.get("modules", []))
    assert len(found.procedures) == len(read["code"])
    assert len(found.jobs) == len(read["jobs"])


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
