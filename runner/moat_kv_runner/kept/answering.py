"""The runner's side of questions about what runs have left on this node.

One task of `serving.Service`. Questions are answered one after the other, each within a time and a
size, from the files alone; whoever asks too much waits, and holds up nobody but others who ask.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from moat_kv import errors
from moat_kv_runner.kept import files, questions, recorder

if TYPE_CHECKING:
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

#: The size of an answer, in bytes of lines.
ANSWER_BYTES = 256 * 1024


async def answer(service: Service, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """Answer until cancelled."""
    topic = questions.ask_topic(service.places, service.group)
    async with service.client.monitor(topic, max_depth=0) as asked:
        task_status.started()
        async for message in asked:
            try:
                question = questions.parse(message.value)
            except errors.BadValue:
                continue
            if question is None or not _concerns(service, question):
                continue
            facts = {"node": service.name, "number": question.number}
            try:
                facts |= await _found(service, question)
            except recorder.NotKept as exc:
                facts["error"] = str(exc)
            except OSError as exc:  # a time limit is one of these, too
                why = str(exc) or "it takes too long"
                facts["error"] = f"what runs have left cannot be read: {why}"
            await _send(service, question, facts)


async def _send(service: Service, question: questions.Question, facts: dict[str, Any]) -> None:
    try:
        topic = questions.answer_topic(service.places, service.group, question.token)
        await service.client.send(topic, facts)
    except errors.MoatKvError as exc:
        logger.info("a question about %s is not answered: %s", question.path, exc)


def _concerns(service: Service, question: questions.Question) -> bool:
    return question.node in (None, service.name) and question.kind in service.kinds


async def _found(service: Service, question: questions.Question) -> dict[str, Any]:
    where = (question.kind, question.path)
    if question.what == questions.RUNS:
        found = await service.runs.ask(*where, lambda job: job.runs())
        return {"runs": [files.with_result(each) for each in found]}
    most_bytes = min(ANSWER_BYTES, service.client.server.frame_limit // 4)
    place = question.after.get(service.name)

    def read(job: files.JobFiles) -> files.Page:
        if place is not None:
            return job.after(place, run=question.run, most_bytes=most_bytes)
        return job.tail(question.count, run=question.run, most_bytes=most_bytes)

    page = await service.runs.ask(*where, read)
    lines = page.lines
    if place is None and question.since is not None:
        lines = [each for each in lines if each["at"] > question.since]
    return {"lines": lines, "cursor": page.cursor, "more": page.more, "missed": page.missed}
