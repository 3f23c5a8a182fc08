"""Ages in a spool when the wall clock is set, and what becomes of envelopes that are too old."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.spool_support import drained, event, ids
from tests.core.worker_support import Clock, until
from tests.timing import SOON
from transport_kit.config.dsn import Dsn
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.queues.spool.ages import Ages
from transport_kit.queues.spool.status import SpoolStatus, publish, read_status
from transport_kit.queues.spool.system import System
from transport_kit.testing import FaultServer
from transport_kit.transport.factory import make_transport

IDENTITY = "0123456789abcdef"
DAY = 86_400.0
#: A moment of the year 2024, in epoch seconds.
TODAY = 1_720_000_000.0


class Host:
    """The clocks of a host, its boots, and spools on one of its directories."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.wall = TODAY
        self.boot = 1
        self.spools: list[FileSpool] = []

    def spool(self, **options: object) -> FileSpool:
        host = self

        class Booted(System):
            def boot(self) -> str:
                return f"boot {host.boot}"

        spool = FileSpool(
            str(self.path),
            IDENTITY,
            clock=self.clock,
            wall=lambda: self.wall,
            system=Booted(),
            **options,  # type: ignore[arg-type]
        )
        self.spools.append(spool)
        return spool

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.wall += seconds

    def reboot(self) -> None:
        """Begin another boot, whose monotonic clock starts anew."""
        self.boot += 1
        self.clock.now = 10.0


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "spool")
    yield host
    for spool in host.spools:
        spool.close()


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("reboot", [True, False])
@pytest.mark.parametrize(
    ("at_first", "max_age"), [(100.0, 7 * DAY), (TODAY - 8 * DAY, 7 * DAY), (TODAY - 7200.0, 3600.0)]
)
def test_a_clock_that_is_corrected_after_captures_costs_none_of_them(
    host: Host, at_first: float, max_age: float, reboot: bool, drain: bool
) -> None:
    """A device without a battery boots in 1970; NTP corrects the clock while no process drains."""
    host.wall = at_first
    spool = host.spool(drain=drain, max_age=max_age)
    for number in range(20):
        spool.put(event(number))
    spool.claim(0, 0.0)
    spool.close()
    if reboot:
        host.reboot()
    host.wall = TODAY
    drainer = host.spool(max_age=max_age)
    assert sorted(filter(None, drained(drainer))) == ids(*range(20))
    assert drainer.take_losses() == ()


@pytest.mark.parametrize(
    ("step", "max_age"), [(56 * 365 * DAY, 7 * DAY), (8 * DAY, 7 * DAY), (7200.0, 3600.0)]
)
def test_a_clock_that_is_corrected_while_a_process_drains_costs_nothing(
    host: Host, step: float, max_age: float
) -> None:
    """The drainer sees the step; also a drainer that follows it before the ages are known again."""
    spool = host.spool(max_age=max_age)
    for number in range(20):
        spool.put(event(number))
    spool.claim(0, 0.0)
    host.pass_time(2)
    host.wall += step
    spool.claim(0, 0.0)
    host.pass_time(2)
    spool.claim(0, 0.0)
    spool.close()
    following = host.spool(max_age=max_age)
    assert sorted(filter(None, drained(following))) == ids(*range(20))
    assert following.take_losses() == ()


def test_a_clock_that_is_set_back_and_corrected_costs_nothing(host: Host) -> None:
    """A second step begins another time of unknown ages."""
    spool = host.spool(max_age=3600.0)
    spool.claim(0, 0.0)
    host.wall -= 7200
    host.pass_time(2)
    spool.claim(0, 0.0)
    spool.put(event(1))
    host.wall += 7200
    host.pass_time(2)
    assert drained(spool) == ids(1)
    assert spool.take_losses() == ()


def test_ages_count_anew_from_a_step_and_expire_from_there(host: Host) -> None:
    """A step postpones the expiry and does not end it, whoever drains by then."""
    spool = host.spool(max_age=3600.0)
    spool.put(event(1))
    spool.claim(0, 0.0)
    host.wall += 7200
    spool.claim(0, 0.0)
    for _ in range(5):
        host.pass_time(1000)
        spool.close()
        spool = host.spool(max_age=3600.0)
        spool.claim(0, 0.0)
    assert drained(spool) == []
    assert spool.take_losses() == (("cache_overflow", "error", 1),)


def test_a_short_reboot_does_not_renew_ages(host: Host) -> None:
    """A host that reboots each night would keep everything for ever; a minute passed and no more."""
    spool = host.spool(max_age=DAY)
    spool.put(event(1))
    for _ in range(25):
        host.pass_time(3600)
        spool.close()
        host.reboot()
        host.wall += 60
        spool = host.spool(max_age=DAY)
        spool.claim(0, 0.0)
    assert drained(spool) == []
    assert spool.take_losses() == (("cache_overflow", "error", 1),)


def test_a_boot_whose_clock_is_behind_the_last_one_judges_no_age() -> None:
    """Time does not run backwards: one of the two clocks was wrong."""
    clock = Clock()
    before = SpoolStatus(boot="a", at=clock.now, wall=TODAY)
    ages = Ages(DAY, clock=clock, wall=lambda: TODAY - 3600, before=before, boot="b")
    assert ages.oldest_ms == 0


def test_a_spool_that_was_begun_just_now_has_nothing_too_old(host: Host) -> None:
    """Its begin is published, so that the first drainer knows whether the clock was set since."""
    spool = host.spool(drain=False)
    directory = spool._current().directory
    assert directory is not None
    status = read_status(directory)
    assert status is not None
    assert (status.ages_from, status.wall, status.boot) == (TODAY, TODAY, "boot 1")
    host.pass_time(50)
    host.spool(drain=False)
    assert read_status(directory) == status
    assert not publish(directory, SpoolStatus(pid=7), first=True)
    assert read_status(directory) == status
    names = [path.name for path in (host.path / IDENTITY).iterdir()]
    assert not [name for name in names if name.startswith(".status")]


def test_what_expires_is_in_the_ledger_in_health_in_the_report_and_in_one_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A loss that nobody sees looks like a server that got everything."""
    caplog.set_level(logging.WARNING, "transport_kit")
    with FaultServer() as server:
        path = tmp_path / "spool"
        began = time.time()
        begun = FileSpool(str(path), identity_of(Dsn.parse(server.dsn)), drain=False)
        for number in range(5):
            begun.put(event(number))
        directory = begun._current().directory
        assert directory is not None
        status = read_status(directory)
        assert status is not None
        # As if the spool was begun long ago, by clocks that agreed ever since.
        publish(directory, SpoolStatus(boot=status.boot, at=status.at, wall=status.wall))
        begun.close()
        transport = make_transport(server.dsn, queue=f"file://{path}", spool_max_age=1.0)
        assert until(lambda: time.time() > began + 2.0)
        flushed = transport.flush(SOON, until="delivered")
        assert flushed.ok
        health = transport.health()
        assert health.discarded_by_category == {"cache_overflow": {"error": 5}}
        assert health.status == "warn"
        assert health.pending == {}
        reports = [
            (entry["reason"], entry["category"], entry["quantity"])
            for request in server.requests
            for item in request.envelope.items
            if item.type == "client_report"
            for entry in json.loads(item.get_bytes())["discarded_events"]
        ]
        assert reports == [("cache_overflow", "error", 5)]
        transport.close()
    lines = [record.getMessage() for record in caplog.records if "spool_max_age" in record.getMessage()]
    assert len(lines) == 1
