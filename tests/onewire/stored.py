"""The examples as they are stored: read by their manifests, compiled as the tree compiles them."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from ruyaml import YAML

from moat_kv.code import compiling

EXAMPLES = FilePath(__file__).parents[2] / "examples"


@cache
def manifest(folder: str) -> dict[str, Any]:
    text = (EXAMPLES / folder / "manifest.yaml").read_text()
    read: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return read


@contextmanager
def modules() -> Iterator[None]:
    """Make the stored modules importable, as a runner does, for the block."""
    before = dict(sys.modules)
    package = types.ModuleType("onewire")
    package.__path__ = []
    sys.modules["onewire"] = package
    try:
        for item in manifest("onewire")["modules"]:
            name = item["path"]
            text = (EXAMPLES / "onewire" / item["file"]).read_text()
            module = types.ModuleType(name)
            sys.modules[name] = module
            exec(compiling.compile_module(text, name=name).code, module.__dict__)
            setattr(package, name.rpartition(".")[2], module)
        yield
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] == "onewire":
                del sys.modules[name]


def procedure(folder: str, path: str) -> tuple[compiling.Procedure, dict[str, Any]]:
    """A procedure of a manifest, compiled, and its defaults."""
    for item in manifest(folder)["code"]:
        if item["path"] == path:
            text = (EXAMPLES / folder / item["file"]).read_text()
            compiled = compiling.compile_procedure(
                text, name=path, is_async=item["is_async"], variables=item["vars"]
            )
            return compiled, dict(item["default"])
    raise LookupError(path)
