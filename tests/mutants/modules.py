"""The modules that are mutated, and the tests of each.

The only place to change when a module or a test file moves. Quick tests come first, as a mutant's run ends at
the first failure. Tests that take minutes are left out; a mutant that only they kill counts as a survivor.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODULES", "Module"]


@dataclass(frozen=True)
class Module:
    """One subject of mutation.

    Attributes:
        source: A file or a folder, from the root of the checkout.
        tests: Arguments of pytest: files, or single tests.
        deselect: Names, or parts of names, of tests that are left out, as they take too long.
    """

    source: str
    tests: tuple[str, ...]
    deselect: tuple[str, ...] = ()


_WORKER = (
    "tests/core/test_worker_life.py",
    "tests/core/test_worker_flush.py",
    "tests/core/test_worker_retry.py",
    "tests/core/test_worker_reports.py",
    "tests/core/test_worker_senders.py",
    "tests/core/test_worker_invariants.py",
)
#: Tests that take seconds each, or thousands of envelopes.
_LONG = ("idle_worker_wakes", "no_wake_up_is_lost", "ten_thousand_envelopes")

MODULES = {
    "worker": Module("transport_kit/transport/worker/worker.py", _WORKER, _LONG),
    "dispatch": Module("transport_kit/transport/worker/dispatch.py", _WORKER, _LONG),
    "senders": Module(
        "transport_kit/transport/worker/senders.py",
        ("tests/core/test_senders.py", *_WORKER[:-1]),
        _LONG,
    ),
    "books": Module(
        "transport_kit/transport/worker/books.py", ("tests/core/test_books.py", "tests/core/test_ledger.py")
    ),
    "http": Module(
        "transport_kit/transport/http.py", ("tests/core/test_http.py", "tests/core/test_http_answers.py")
    ),
    "answers": Module(
        "transport_kit/transport/answers.py", ("tests/core/test_http.py", "tests/core/test_http_answers.py")
    ),
    "limits": Module("transport_kit/transport/worker/limits.py", ("tests/core/test_limits.py",)),
    "exchange": Module("transport_kit/transport/wire/exchange.py", ("tests/core/test_exchange.py",)),
    "sealed": Module("transport_kit/envelope/sealed.py", ("tests/core/test_sealed.py",)),
    "spool": Module(
        "transport_kit/queues/spool",
        (
            "tests/core/test_spool.py",
            "tests/core/test_spool_failures.py",
            "tests/core/test_spool_taking_over.py",
            "tests/core/test_spool_inspection.py",
            "tests/core/test_spool_segments.py",
            "tests/core/test_spool_bounds.py",
            "tests/core/test_spool_dead_letters.py",
            "tests/core/test_spool_clocks.py",
            "tests/core/test_spool_flush.py",
        ),
        ("ten_thousand_segments",),
    ),
    "scrub": Module(
        "transport_kit/reporting/values/scrub.py",
        (
            "tests/core/test_reporting_values.py",
            "tests/core/test_reporting_harmless.py",
            "tests/core/test_reporting_secrets.py",
        ),
    ),
    "scope": Module(
        "transport_kit/reporting/scope.py",
        ("tests/core/test_reporting_scope.py",),
    ),
}
