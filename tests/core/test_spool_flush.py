"""The report of a flush of a spool."""

from __future__ import annotations

from pathlib import Path

from tests.core.spool_support import event
from tests.timing import SOON
from transport_kit.config.dsn import Dsn
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.testing import FaultServer
from transport_kit.transport.factory import make_transport


def test_a_flush_of_a_spool_counts_what_was_settled_during_it(tmp_path: Path) -> None:
    """An app logs the report before it exits; it was 0 whatever was delivered."""
    with FaultServer() as server:
        earlier = FileSpool(str(tmp_path / "spool"), identity_of(Dsn.parse(server.dsn)), drain=False)
        for number in range(3):
            earlier.put(event(number))
        earlier.close()
        server.answer(400, times=1)
        transport = make_transport(server.dsn, queue=f"file://{tmp_path}/spool")
        first = transport.flush(SOON, until="delivered")
        second = transport.flush(SOON, until="delivered")
        transport.close()
    assert (first.ok, first.delivered, first.discarded) == (True, 2, 1)
    assert (second.ok, second.delivered, second.discarded) == (True, 0, 0)
