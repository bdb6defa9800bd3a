"""What runs leave on their node: bounded, kept over restarts, and never in anybody's way."""

from __future__ import annotations

import errno
import json
import logging
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from moat_kv import P, Path
from moat_kv.config import RunnerConfig
from moat_kv_runner.children import reporting
from moat_kv_runner.kept import files, recorder, sink

JOB = P("a.job")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk is no reason to give up what a test waits for."""
    monkeypatch.setattr(recorder, "ANSWER_S", 30.0)
    monkeypatch.setattr(recorder, "CLOSE_S", 30.0)


def lines_of(page: files.Page) -> list[str]:
    return [each["text"] for each in page.lines]


def line(text: str, run: int = 1) -> bytes:
    return files.packed_line(at=time.time(), run=run, stream="out", level=None, text=text)


def made(folder: pathlib.Path, **settings: Any) -> recorder.Recorder:
    given = RunnerConfig(logs=str(folder), **settings)
    return recorder.Recorder(given, name="n1", group=Path("default"))


def begun(kept: recorder.Recorder, path: Path = JOB, kind: str = "any") -> sink.RunSink:
    return kept.begin(kind, path, {"started": time.time(), "node": "n1", "fence": 7})


async def tail(kept: recorder.Recorder, path: Path = JOB, run: int | None = None) -> list[str]:
    page = await kept.ask("any", path, lambda job: job.tail(1000, run=run, most_bytes=1 << 20))
    return lines_of(page)


def total_bytes(folder: pathlib.Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("lines-*"))


async def runs(kept: recorder.Recorder, path: Path = JOB) -> list[dict[str, Any]]:
    return await kept.ask("any", path, lambda job: job.runs())


def test_lines_are_a_ring_and_pages_follow_it(tmp_path: pathlib.Path) -> None:
    job = files.JobFiles(tmp_path / "job", runs=5)
    job.begin({})
    for number in range(100):
        job.append([line(f"line {number}")], 2000)
    assert sum(each.stat().st_size for each in tmp_path.glob("job/lines-*")) <= 2100
    kept = job.tail(1000, run=None, most_bytes=1 << 20)
    assert lines_of(kept)[-1] == "line 99"
    assert 10 < len(kept.lines) < 60
    assert lines_of(job.tail(3, run=None, most_bytes=1 << 20)) == ["line 97", "line 98", "line 99"]
    assert lines_of(job.tail(3, run=2, most_bytes=1 << 20)) == []
    assert job.after(kept.cursor, run=None, most_bytes=1000) == files.Page(
        lines=[], cursor=kept.cursor
    )


def test_page_goes_on_over_segments_and_tells_what_it_missed(tmp_path: pathlib.Path) -> None:
    job = files.JobFiles(tmp_path / "job", runs=5)
    cursor = (1, 0)
    seen: list[str] = []
    for number in range(60):
        job.append([line(f"line {number}")], 2000)
        while True:
            page = job.after(cursor, run=None, most_bytes=300)
            assert not page.missed
            cursor, seen = page.cursor, seen + lines_of(page)
            if not page.more:
                break
    assert seen == [f"line {number}" for number in range(60)]
    page = job.after((1, 0), run=None, most_bytes=1000)
    assert page.missed
    assert lines_of(page)[0] != "line 0"


def test_runs_are_bounded_and_survive_with_their_numbers(tmp_path: pathlib.Path) -> None:
    job = files.JobFiles(tmp_path / "job", runs=3)
    for _ in range(50):
        number = job.begin({"started": 1.0})
        job.note_runs([{"run": number, "started": 1.0, "outcome": "done"}])
    assert [each["run"] for each in job.runs()] == [48, 49, 50]
    assert (tmp_path / "job" / "runs").stat().st_size < 3000
    job.begin({"started": 2.0})
    later = files.JobFiles(tmp_path / "job", runs=3)
    assert [(each["run"], each["outcome"]) for each in later.runs()] == [
        (49, "done"),
        (50, "done"),
        (51, "cut off"),
    ]
    assert later.begin({"started": 3.0}) == 52


def test_torn_lines_are_passed_over(tmp_path: pathlib.Path) -> None:
    job = files.JobFiles(tmp_path / "job", runs=3)
    job.begin({})
    job.append([line("whole")], 2000)
    with (tmp_path / "job" / "lines-1").open("ab") as file:
        file.write(b'[1,2,"out"')
    with (tmp_path / "job" / "runs").open("ab") as file:
        file.write(b'{"run": 7')
    later = files.JobFiles(tmp_path / "job", runs=3)
    later.append([line("after")], 2000)
    assert lines_of(later.tail(10, run=None, most_bytes=1 << 20)) == ["whole", "after"]
    assert [each["run"] for each in later.runs()] == [1]


@pytest.mark.parametrize(
    "text", ["a.job", "A.job", "a.job ", "..", ".", "", "a/b", "ä", "x" * 500, "con~1", "a\x00b"]
)
def test_names_of_files_are_safe_and_differ(text: str) -> None:
    name = files.name_of(text)
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert len(os.fsencode(name)) < 130
    others = ["a.job", "A.job", "a.job ", "..", ".", "a/b", "a_b", "b"]
    assert all(files.name_of(each) != name for each in others if each != text)


@pytest.mark.anyio
async def test_lines_and_ends_are_kept_over_a_restart(tmp_path: pathlib.Path) -> None:
    kept = made(tmp_path)
    run = begun(kept)
    run.printed("out", "hello")
    run.logged(logging.WARNING, "", "careful")
    run.logged(logging.INFO, "lib", "said")
    run.ended("done", at=5.0, result={"x": b"1"})
    begun(kept).printed("err", "oh")
    assert await tail(kept, run=1) == ["hello", "careful", "lib: said"]
    with pytest.raises(recorder.NotKept, match="another runner uses"):
        await tail(made(tmp_path))
    kept.close()
    later = made(tmp_path)
    assert await tail(later) == ["hello", "careful", "lib: said", "oh"]
    first, second = await runs(later)
    assert (first["outcome"], files.with_result(first)["result"]) == ("done", {"x": b"1"})
    assert (first["fence"], second["outcome"]) == (7, "cut off")
    later.close()


@pytest.mark.anyio
async def test_what_a_gone_job_has_left_goes(tmp_path: pathlib.Path) -> None:
    kept = made(tmp_path)
    for name in ("a", "b", "c"):
        begun(kept, P(name)).printed("out", name)
    run = begun(kept, P("d"))
    kept.forget("any", P("a"))
    kept.forget("any", P("d"))
    run.printed("out", "too late")
    run.ended("stopped", at=1.0)
    assert await tail(kept, P("a")) == []
    assert await runs(kept, P("d")) == []
    kept.keep_only("any", [P("b")])
    assert await tail(kept, P("c")) == []
    assert await tail(kept, P("b")) == ["b"]
    again = begun(kept, P("a"))
    again.printed("out", "anew")
    assert await tail(kept, P("a")) == ["anew"]
    kept.close()
    assert {each.name for each in (tmp_path / "n1/default/any").iterdir()} == {".lock", "a", "b"}


@pytest.mark.anyio
async def test_what_is_gone_goes_when_the_folder_is_free(tmp_path: pathlib.Path) -> None:
    former = made(tmp_path)
    for name in ("a", "b"):
        begun(former, P(name)).printed("out", name)
    assert await tail(former, P("a")) == ["a"]
    kept = made(tmp_path)
    kept.keep_only("any", [P("b")])
    with pytest.raises(recorder.NotKept):
        await tail(kept, P("b"))
    former.close()
    assert await tail(kept, P("b")) == ["b"]
    assert await tail(kept, P("a")) == []
    kept.close()
    assert {each.name for each in (tmp_path / "n1/default/any").iterdir()} == {".lock", "b"}


@pytest.mark.anyio
async def test_all_jobs_together_stay_below_what_the_settings_allow(tmp_path: pathlib.Path) -> None:
    kept = made(tmp_path, logs_mb=0.1)
    jobs = [P(f"job.n{number}") for number in range(20)]
    for job in jobs:
        run = begun(kept, job)
        for _ in range(40):
            run.printed("out", "x" * 500)
        await tail(kept, job)
    kept.keep_only("any", jobs)
    await tail(kept, jobs[0])
    total = total_bytes(tmp_path)
    assert 20_000 < total < 250_000
    kept.close()
    off = made(tmp_path / "off", logs_mb=0)
    begun(off).printed("out", "x")
    with pytest.raises(recorder.NotKept, match=r"runner\.logs_mb"):
        await tail(off)
    assert not (tmp_path / "off").exists()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A disk that is full when it is told to be."""
    real = os.statvfs
    is_full = False

    def statvfs(place: Any) -> Any:
        found = real(place)
        facts = list(found)
        facts[4] = 0 if is_full else max(facts[4], facts[2] // 2)
        return os.statvfs_result(facts)

    def fill(full: bool) -> None:
        nonlocal is_full
        is_full = full

    monkeypatch.setattr(os, "statvfs", statvfs)
    return fill


@pytest.mark.anyio
async def test_full_disk_loses_lines_and_says_so_once(
    tmp_path: pathlib.Path, disk: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    disk(False)
    kept = made(tmp_path)
    run = begun(kept)
    run.printed("out", "before")
    await tail(kept)
    disk(True)
    for number in range(10):
        run.printed("out", f"lost {number}")
        assert await tail(kept) == ["before"]
    unlucky = begun(kept, P("unlucky"))
    unlucky.printed("out", "lost, too")
    await tail(kept, P("unlucky"))
    assert [each.message.partition(":")[0] for each in caplog.records] == [
        "what runs print is not kept now"
    ]
    disk(False)
    run.printed("out", "after")
    unlucky.printed("out", "its first")
    assert [each[:9] for each in await tail(kept)] == ["before", "10 lines ", "after"]
    assert [each[:9] for each in await tail(kept, P("unlucky"))] == ["1 lines w", "its first"]
    assert caplog.records[-1].message == "what runs print is kept again"
    assert len(caplog.records) == 2
    kept.close()


@pytest.mark.anyio
async def test_folder_that_fails_harms_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    kept = made(tmp_path / "file")
    begun(kept).printed("out", "x")
    with pytest.raises(OSError, match="file"):
        await tail(kept)
    kept.close()
    kept = made(tmp_path / "ok")
    run = begun(kept)
    run.printed("out", "kept")
    await tail(kept)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.JobFiles, "append", refuse)
    run.printed("out", "lost")
    assert await tail(kept) == ["kept"]
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "ok" / "n1" / "default" / "any" / "a.job")
    run.printed("out", "in a new folder")
    assert (await tail(kept))[-1] == "in a new folder"
    kept.close()
    told = [each.message for each in caplog.records if each.name == recorder.__name__]
    assert len(told) == 3, told


@pytest.mark.anyio
async def test_too_much_at_once_is_lost_and_counted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "WAITING_BYTES", 1000)
    goes_on, append = threading.Event(), files.JobFiles.append

    def held(*args: Any) -> None:
        assert goes_on.wait(30)
        append(*args)

    monkeypatch.setattr(files.JobFiles, "append", held)
    kept = made(tmp_path)
    run = begun(kept)
    for _ in range(1000):
        run.printed("out", "x" * 100)  # it waits for no disk
    assert run.lost > 900
    goes_on.set()
    await tail(kept)
    run.printed("out", "after")
    page = await kept.ask("any", JOB, lambda job: job.tail(2000, run=None, most_bytes=1 << 20))
    lost = [each["text"].partition(" lines were lost: ")[0] for each in page.lines if each["level"]]
    texts = [each["text"] for each in page.lines if not each["level"]]
    assert texts[-1] == "after"
    assert sum(map(int, lost)) + len(texts) == 1001
    kept.close()


@pytest.mark.anyio
async def test_logger_of_a_run_keeps_more_than_the_log_shows(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "BURST_LINES", 6)
    monkeypatch.setattr(reporting, "LINES_PER_S", 0)
    kept = made(tmp_path)
    log = sink.RunLogger("moat_kv.job.x", begun(kept))
    log.info("quiet %s", 1)
    log.debug("not even kept")
    log.warning("loud")
    log.getChild("part").error("part")
    log.info("%d", "no number")
    try:
        raise ValueError("trouble")
    except ValueError:
        log.exception("with a trace")
    texts = await tail(kept)
    assert texts[:3] == ["quiet 1", "loud", "part"]
    assert texts[3].startswith("%d (cannot be formatted")
    assert texts[4].endswith("ValueError: trouble")
    page = await kept.ask("any", JOB, lambda job: job.tail(1, run=None, most_bytes=1 << 20))
    assert page.lines[0]["level"] == logging.ERROR
    for _ in range(20):
        log.warning("flood")
    assert len(await tail(kept)) == 7  # its child has a rate of its own
    assert "quiet 1" not in caplog.text
    assert "loud" in caplog.text
    kept.close()


def test_lines_are_json_whatever_they_hold() -> None:
    packed = line("\x1b[31m\udcff\u2028 \x9b\n")
    assert packed.count(b"\n") == 1
    assert json.loads(packed)[4] == "\x1b[31m\\udcff\u2028 \x9b\n"


@pytest.mark.anyio
async def test_closing_takes_no_more(tmp_path: pathlib.Path) -> None:
    kept = made(tmp_path)
    run = begun(kept)
    kept.close()
    run.printed("out", "late")
    run.ended("done", at=1.0)
    with anyio.fail_after(30):
        while (tmp_path / "n1/default/any/a.job/lines-1").exists():
            await anyio.sleep(0.01)
    kept.close()
