"""Code that was stored without a check and cannot be used: kept as error records.

One task of `serving.Service`. What is stored through `CodeRoot.add`, `ModuleRoot.add` or the
command line was checked before; a raw write was not. The jobs that need such code say so too, in
their states; this record is there though no job needs it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from moat_kv import errors
from moat_kv.client import claiming, error_record
from moat_kv.code.modules import ModuleEntry
from moat_kv.code.procedures import CodeEntry
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

SUBSYSTEM = "code"


async def keep(service: Service) -> None:
    """Record what cannot be compiled and resolve what can again, until cancelled."""
    waiting: dict[Path, CodeEntry | ModuleEntry] = {}
    news = anyio.Event()

    def changed(entry: CodeEntry | ModuleEntry) -> None:
        waiting[entry.absolute] = entry
        news.set()

    ends = [service.code.listen(changed), service.modules.listen(changed)]
    try:
        open_here = await claiming.patiently(service.client, lambda: _open_here(service))
        for root in (service.code, service.modules):
            for entry in root.all_children:
                if isinstance(entry, CodeEntry | ModuleEntry):
                    changed(entry)
        # Those that were deleted while nobody looked have no entry any more.
        for path in open_here.keys() - waiting.keys():
            await _resolve(service, path)
        while True:
            news = anyio.Event()
            while waiting:
                path, entry = waiting.popitem()
                problem = entry.problem if entry.value is not NotGiven else None
                if isinstance(problem, errors.Compiling):
                    continue  # it is told again when that is done
                try:
                    await _note(service, path, problem, open_here)
                except errors.MoatKvError:
                    # One record's trouble must not end the runner.
                    logger.exception("cannot keep the error record of %s", path)
            await news.wait()
    finally:
        for end in ends:
            end()


async def _open_here(service: Service) -> dict[Path, str]:
    """What this node has on record, with the message."""
    found = await error_record.records(service.client, subsystem=SUBSYSTEM, places=service.places)
    return {
        each.path: each.nodes[service.name].message for each in found if service.name in each.nodes
    }


async def _note(
    service: Service,
    path: Path,
    problem: errors.MoatKvError | None,
    open_here: dict[Path, str],
) -> None:
    if problem is None:
        if open_here.pop(path, None) is not None:
            await _resolve(service, path)
        return
    text = error_record.describe(problem)
    if open_here.get(path) == text:
        return
    logger.info("%s", text)
    await claiming.patiently(
        service.client,
        lambda: error_record.record(
            service.client,
            SUBSYSTEM,
            path,
            node=service.name,
            message=text,
            places=service.places,
        ),
    )
    open_here[path] = text


async def _resolve(service: Service, path: Path) -> None:
    await claiming.patiently(
        service.client,
        lambda: error_record.resolve(
            service.client,
            SUBSYSTEM,
            path,
            by=error_record.BY_SUCCESS,
            places=service.places,
        ),
    )
