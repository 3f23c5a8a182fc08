"""Check-ins: each run begins and ends under one id, whatever happens in it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.core.reporting_support import Kept, reporter_for
from tests.timing import SOON
from transport_kit.reporting import Scope
from transport_kit.reporting.monitors import monitor_config


@pytest.fixture(name="kept")
def _kept() -> Iterator[Kept]:
    with Kept() as transport:
        yield transport


def test_a_run_is_reported_at_its_beginning_and_its_end(kept: Kept) -> None:
    """A hanging job is detected by its missing end."""
    reporter = reporter_for(kept, release="shop@1", environment="staging")
    with reporter.monitor("nightly", schedule="0 3 * * *", timezone="Europe/Vienna", max_runtime=30):
        assert len(kept.check_ins()) == 1
    begun, ended = kept.check_ins()
    assert (begun["status"], ended["status"]) == ("in_progress", "ok")
    assert begun["check_in_id"] == ended["check_in_id"]
    assert (begun["monitor_slug"], begun["release"], begun["environment"]) == ("nightly", "shop@1", "staging")
    assert begun["monitor_config"] == {
        "schedule": {"type": "crontab", "value": "0 3 * * *"},
        "timezone": "Europe/Vienna",
        "max_runtime": 30,
    }
    assert "monitor_config" not in ended
    assert ended["duration"] >= 0
    assert len(begun["contexts"]["trace"]["trace_id"]) == 32
    for envelope in kept.envelopes:
        envelope.validate()


def test_a_run_that_fails_says_so_and_its_exception_is_reported_once(kept: Kept) -> None:
    """Nothing else captures the exception of a cron job; it propagates all the same."""
    reporter = reporter_for(kept)
    with pytest.raises(ValueError, match="boom"), reporter.transaction("job"), reporter.monitor("nightly"):
        raise ValueError("boom")
    assert [check_in["status"] for check_in in kept.check_ins()] == ["in_progress", "error"]
    (event,) = kept.events
    assert event["exception"]["values"][0]["mechanism"]["handled"] is False
    assert event["contexts"]["trace"]["trace_id"] == kept.check_ins()[0]["contexts"]["trace"]["trace_id"]
    assert "monitor_config" not in kept.check_ins()[0]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SystemExit(0), "ok"),
        (SystemExit(None), "ok"),
        (SystemExit(1), "error"),
        (KeyboardInterrupt(), "error"),
    ],
)
def test_a_job_may_end_the_process(kept: Kept, error: BaseException, status: str) -> None:
    """`sys.exit()` at the end of a script is a success. Ctrl-C is a failure, but no exception to report."""
    with pytest.raises(type(error)), reporter_for(kept).monitor("nightly"):
        raise error
    assert kept.check_ins()[-1]["status"] == status
    assert kept.events == []


def test_a_decorated_function_stays_what_it_was(kept: Kept) -> None:
    """Plain and async functions keep name, arguments and result; each call is a run."""
    reporter = reporter_for(kept)
    begun = threading.Barrier(2, timeout=SOON)

    @reporter.monitor("plain", schedule=(10, "minutes"))
    def plain(number: int) -> int:
        """Adds one."""
        if number:
            begun.wait()
        return number + 1

    @reporter.monitor("awaited")
    async def awaited(both: asyncio.Barrier) -> str:
        await both.wait()
        return "done"

    async def main() -> tuple[str, str]:
        both = asyncio.Barrier(2)
        return await asyncio.gather(awaited(both), awaited(both))

    assert (plain.__name__, plain.__doc__) == ("plain", "Adds one.")
    threads = [threading.Thread(target=plain, args=(1,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert plain(0) == 1
    assert list(asyncio.run(main())) == ["done", "done"]
    by_run: dict[str, list[str]] = {}
    for check_in in kept.check_ins():
        by_run.setdefault(check_in["check_in_id"], []).append(check_in["status"])
    assert list(by_run.values()) == [["in_progress", "ok"]] * 5
    assert kept.check_ins()[0]["monitor_config"]["schedule"] == {
        "type": "interval",
        "value": 10,
        "unit": "minute",
    }


def test_a_generator_function_is_not_told_as_a_run_that_went_well(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """Calling it runs nothing yet: an immediate `ok` would hide every failure."""
    monitor = reporter_for(kept).monitor("nightly")

    def rows() -> Iterator[int]:
        yield 1

    async def pages() -> AsyncIterator[int]:
        yield 1

    assert monitor(rows) is rows
    assert monitor(pages) is pages
    assert caplog.text.count("generator") == 2
    assert kept.check_ins() == []


def test_an_object_with_an_async_call_is_awaited_before_its_end_is_told(kept: Kept) -> None:
    """Task classes of frameworks are callable objects; the call returns before the task has run."""

    class Task:
        async def __call__(self, number: int) -> int:
            return 1 // number

    task = reporter_for(kept).monitor("nightly")(Task())
    assert asyncio.run(task(1)) == 1
    with pytest.raises(ZeroDivisionError):
        asyncio.run(task(0))
    assert [check_in["status"] for check_in in kept.check_ins()] == [
        "in_progress",
        "ok",
        "in_progress",
        "error",
    ]


def test_a_failing_async_job_is_reported(kept: Kept) -> None:
    """The block of an async job, and the async function."""
    reporter = reporter_for(kept)

    @reporter.monitor("function")
    async def function() -> None:
        raise ValueError("in the function")

    async def main() -> None:
        with pytest.raises(ValueError, match="function"):
            await function()
        async with reporter.monitor("block"):
            pass

    asyncio.run(main())
    assert [check_in["status"] for check_in in kept.check_ins()] == [
        "in_progress",
        "error",
        "in_progress",
        "ok",
    ]


def test_one_monitor_may_be_entered_again(kept: Kept) -> None:
    """It is kept in a variable and used for each run; a superfluous exit is no error."""
    monitor = reporter_for(kept).monitor("nightly")
    with monitor, monitor:
        pass
    with monitor:
        pass
    monitor.__exit__(None, None, None)
    runs = [check_in["check_in_id"] for check_in in kept.check_ins()]
    assert runs[0] == runs[3]
    assert runs[1] == runs[2]
    assert len(set(runs)) == 3
    assert len(runs) == 6


@pytest.mark.parametrize(
    "wrong",
    ["hourly", "* * * *", (0, "minute"), (True, "minute"), (1, "fortnight"), (1,), 5, ("1", "hour"), (1, 2)],
)
def test_a_wrong_schedule_is_said_and_stops_no_job(
    kept: Kept, caplog: pytest.LogCaptureFixture, wrong: Any
) -> None:
    """An invalid schedule is logged; the job runs all the same."""
    with reporter_for(kept).monitor("nightly", schedule=wrong, max_runtime=5):
        pass
    assert "monitor_config" not in kept.check_ins()[0]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert monitor_config(wrong, timezone=None) == {}


def test_a_check_in_that_cannot_be_made_is_counted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The job runs all the same."""
    reporter = reporter_for(kept)
    monkeypatch.setattr(Scope, "current", lambda: 1 / 0)
    ran = []
    with reporter.monitor("nightly"):
        ran.append(1)
    assert ran == [1]
    assert kept.lost() == {"internal_sdk_error": {"monitor": 2}}
    assert "ZeroDivisionError" in caplog.text


def test_blocks_of_one_monitor_that_overlap_keep_their_own_ends(kept: Kept) -> None:
    """Threads and tasks share a monitor that is kept in a module's variable."""
    monitor = reporter_for(kept).monitor("overlapping")

    async def job(fails: bool, both: asyncio.Barrier, over: asyncio.Event) -> None:
        async with monitor:
            await both.wait()
            if fails:
                over.set()
                raise ValueError("first")
            await over.wait()
            await asyncio.sleep(0)

    async def main() -> None:
        both, over = asyncio.Barrier(2), asyncio.Event()
        await asyncio.gather(job(True, both, over), job(False, both, over), return_exceptions=True)

    with monitor:
        asyncio.run(main())
        thread = threading.Thread(target=monitor.__enter__)
        thread.start()
        thread.join(timeout=30)
    runs = [check_in["check_in_id"] for check_in in kept.check_ins() if check_in["status"] == "in_progress"]
    ended = [
        (runs.index(check_in["check_in_id"]), check_in["status"])
        for check_in in kept.check_ins()
        if check_in["status"] != "in_progress"
    ]
    assert ended == [(1, "error"), (2, "ok"), (0, "ok")]


def test_a_block_left_in_another_context_has_its_end(kept: Kept) -> None:
    """Frameworks may run the two halves of a block in different contexts."""
    monitor = reporter_for(kept).monitor("nightly")
    contextvars.copy_context().run(monitor.__enter__)
    contextvars.copy_context().run(monitor.__exit__, None, None, None)
    assert [check_in["status"] for check_in in kept.check_ins()] == ["in_progress", "ok"]


def test_runs_that_overlap_keep_their_own_ends(kept: Kept) -> None:
    """If the earlier of two concurrent calls fails, its own run fails and not the other."""

    @reporter_for(kept).monitor("overlapping")
    async def job(first: bool, both: asyncio.Barrier, over: asyncio.Event) -> None:
        await both.wait()
        if first:
            over.set()
            raise ValueError("first")
        await over.wait()
        await asyncio.sleep(0)

    async def main() -> None:
        both, over = asyncio.Barrier(2), asyncio.Event()
        await asyncio.gather(job(True, both, over), job(False, both, over), return_exceptions=True)

    asyncio.run(main())
    begun = [check_in["check_in_id"] for check_in in kept.check_ins()[:2]]
    ended = {check_in["check_in_id"]: check_in["status"] for check_in in kept.check_ins()[2:]}
    assert ended == {begun[0]: "error", begun[1]: "ok"}
