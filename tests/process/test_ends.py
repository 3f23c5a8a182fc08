"""Ends and forks of real processes, through each hook."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.timing import SOON, quickest, scaled
from transport_kit.testing import FaultServer

Run = Callable[..., Any]

HEAD = """
import logging, os, signal, sys, threading, time
import transport_kit
from transport_kit import Envelope, make_transport
def event(text): return {"message": text}
"""


def messages(server: FaultServer) -> list[str]:
    """Return the messages of all accepted events, sorted."""
    import json

    return sorted(
        json.loads(item.get_bytes())["message"]
        for request in server.accepted
        for item in request.envelope.items
        if item.type == "event"
    )


# -- ends of a process ------------------------------------------------------------------------------------

ENDS = {
    "the script ends": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise ValueError('boom')", 1),
    # Flushed first: CPython loses the exit status of Ctrl-C if a thread runs `exec`, as an import may.
    "Ctrl-C": (
        "transport.flush(); transport.capture_event(event('last')); "
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
        -signal.SIGINT,
    ),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
    "a thread that is left": ("threading.Thread(target=time.sleep, args=(0.2,)).start()", 0),
    "in an exit hook": ("import atexit; atexit.register(transport.capture_event, event('last'))", 0),
}


@pytest.mark.parametrize("how", ENDS)
def test_what_was_accepted_is_delivered_before_the_process_is_gone(
    how: str, run: Run, server: FaultServer
) -> None:
    """The exception that ends a process matters most; the exit status does not change."""
    code, status = ENDS[how]
    script = (
        f"{HEAD}\ntransport = make_transport()\nfor n in range(20): transport.capture_event(event(str(n)))\n"
    )
    ended = run(script + code)
    assert ended.status == status
    assert messages(server) == sorted([str(n) for n in range(20)] + (["last"] if "last" in code else []))
    assert "transport-kit" not in ended.err


def test_a_transport_that_nobody_kept_is_seen_to_the_end(run: Run, server: FaultServer) -> None:
    """The last line of a script may be `make_transport().capture_event(...)`."""
    ended = run(f"{HEAD}\nmake_transport().capture_event(event('x'))")
    assert (ended.status, ended.err) == (0, "")
    assert messages(server) == ["x"]


def test_captures_after_the_end_has_begun_are_delivered_in_the_caller(run: Run, server: FaultServer) -> None:
    """An exit hook that runs after ours may report too; its own time does not count against the timeout."""
    timeout = scaled(1.0)
    ended = run(
        f"{HEAD}\nimport atexit\n"
        "def last():\n"
        f"    threading.Event().wait({timeout})\n"
        "    transport.capture_event(event('late'))\n"
        "    print(transport.pending, transport.health().delivered)\n"
        "atexit.register(last)\n"  # runs after the hook that make_transport registers
        f"transport = make_transport(shutdown_timeout={timeout})\n"
        "transport.capture_event(event('early'))\n"
        f"assert transport.flush({SOON}).ok\n"  # the connection is open, and everything is imported
    )
    assert ended.out.strip() == "0 {'error': 2}"
    assert messages(server) == ["early", "late"]
    assert (ended.status, ended.err) == (0, "")


def test_without_threads_an_exit_hook_delivers_in_the_caller(run: Run, server: FaultServer) -> None:
    """Python 3.12 starts no thread once the interpreter is ending."""
    ended = run(
        f"{HEAD}\nimport atexit, _thread\n"
        'def refuse(*a): raise RuntimeError("can\'t create new thread at interpreter shutdown")\n'
        "_thread.start_new_thread = refuse\n"
        "transport = make_transport()\n"
        "atexit.register(transport.capture_event, event('hook'))\n"
        "transport.capture_event(event('now'))\n"
        "print(transport.pending)\n"
    )
    assert ended.out.strip() == "0"
    assert messages(server) == ["hook", "now"]
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("first", ["early", ""])
def test_a_capture_while_the_interpreter_is_finalized_waits_for_no_dead_thread(
    first: str, run: Run, server: FaultServer
) -> None:
    """In a `__del__` that the last collection calls, no other thread runs any more, so the caller delivers.

    It can't without an open connection, as modules are gone.
    """
    ended = run(
        f"{HEAD}\nclass Late:\n"
        "    def __del__(self):\n"
        "        began = time.monotonic()\n"
        "        accepted = transport.capture_event(event('late'))\n"
        f"        print(sys.is_finalizing(), accepted, time.monotonic() - began < {SOON / 2})\n"
        f"transport = make_transport(shutdown_timeout={SOON})\n"
        "if len(sys.argv) > 1: transport.capture_event(event(sys.argv[1]))\n"
        "late = Late()\n"
        "late.itself = late\n",
        *([first] if first else []),
    )
    assert (ended.status, ended.out.strip()) == (0, "True True True")
    assert messages(server) == (["early", "late"] if first else [])


def test_the_developer_mode_has_nothing_to_complain_about(run: Run, server: FaultServer) -> None:
    """`-X dev` warns about sockets that were not closed."""
    ended = run(
        f"{HEAD}\ntransport = make_transport()\ntransport.capture_event(event('x'))", PYTHONDEVMODE="1"
    )
    assert (ended.status, ended.err) == (0, "")
    assert messages(server) == ["x"]


# -- a server that hangs -----------------------------------------------------------------------------------


def at_once(measure: Callable[[str], float], cases: list[str], enough: float) -> dict[str, float]:
    """Return the least seconds of each case; all run at the same time, as they only wait."""
    with ThreadPoolExecutor(len(cases)) as threads:
        took = threads.map(lambda case: quickest(lambda: measure(case), enough), cases)
        return dict(zip(cases, took, strict=True))


def test_a_server_that_hangs_costs_an_exit_the_timeout_and_one_line(run: Run, server: FaultServer) -> None:
    """All transports together add at most `shutdown_timeout`; one line reports the envelopes left."""
    server.fault("hang")
    timeout = scaled(2.0)
    enough = 1.9 * timeout  # includes the interpreter's own end, but only one timeout for both transports

    def measure(how: str) -> float:
        ended = run(
            f"{HEAD}\ntransports = [make_transport(shutdown_timeout={timeout}) for _ in range(2)]\n"
            "for transport in transports:\n"
            "    for n in range(3): transport.capture_event(event(str(n)))\n"
            f"print(time.monotonic(), flush=True)\n{how}"
        )
        assert ended.err == f"transport-kit: 6 envelopes not delivered within {timeout:g} s of exit\n"
        return float(ended.ended - float(ended.out))

    took = at_once(measure, ["", "raise SystemExit(0)", "os.kill(os.getpid(), signal.SIGTERM)"], enough)
    assert len(took) == 3
    assert all(0.95 * timeout <= seconds <= enough for seconds in took.values()), took


@pytest.mark.parametrize(
    "ending",
    [
        "with transports[0], transports[1]: capture()",
        "capture()\nfor transport in transports: transport.close()",
        "import asyncio\ncapture()\nfor transport in transports: asyncio.run(transport.aclose())",
        "capture()\ntransports[0].close(0.1)",
    ],
)
def test_a_close_that_leaves_envelopes_writes_the_line_too(
    run: Run, server: FaultServer, ending: str
) -> None:
    """A lifespan and a `with` block close the transport before the exit; whoever reads the log must know."""
    server.fault("hang")
    ended = run(
        f"{HEAD}\ntransports = [make_transport(shutdown_timeout=0.3) for _ in range(2)]\n"
        "def capture():\n"
        "    for transport in transports:\n"
        "        for n in range(3): transport.capture_event(event(str(n)))\n"
        f"{ending}"
    )
    seconds = "0.1" if "0.1" in ending else "0.3"
    assert ended.err == f"transport-kit: 3 envelopes not delivered within {seconds} s of close\n"


def test_a_close_that_leaves_nothing_is_silent(run: Run, server: FaultServer) -> None:
    """Nobody wants a line at each end of a process."""
    ended = run(f"{HEAD}\nwith make_transport() as transport: transport.capture_event(event('x'))")
    assert ended.err == ""
    assert len(server.accepted) == 1


def test_close_and_flush_return_in_time_although_the_server_hangs(run: Run, server: FaultServer) -> None:
    """Calls from several threads take hardly longer than the timeout; a closed transport ends at once."""
    server.fault("hang")
    timeout = scaled(2.0)
    enough = 1.9 * timeout

    def measure(call: str) -> float:
        wait = f"transport.{call}({timeout})"
        wait = f"asyncio.run({wait})" if call == "aclose" else wait
        ended = run(
            f"{HEAD}\nimport asyncio\ntransport = make_transport(shutdown_timeout={SOON})\n"
            "for n in range(50): transport.capture_event(event(str(n)))\n"
            "def timed():\n"
            "    began = time.monotonic()\n"
            f"    report = {wait}\n"
            "    os.write(1, f'{time.monotonic() - began} {report.ok}\\n'.encode())\n"
            "threads = [threading.Thread(target=timed) for _ in range(3)]\n"
            "for thread in threads: thread.start()\n"
            "for thread in threads: thread.join()\n"
            "transport.kill(); print(time.monotonic(), flush=True)\n"
        )
        lost = f"transport-kit: 50 envelopes not delivered within {timeout:g} s of close\n"
        # `kill` after a flush is the app's own decision to lose them.
        assert (ended.status, ended.err) == (0, "" if call in ("flush", "aflush") else lost)
        *reports, last = ended.out.splitlines()
        assert len(reports) == 3
        # The second caller of `close` may find everything settled: discarded as closed.
        verdicts = {report.split()[1] for report in reports}
        assert "False" in verdicts
        assert verdicts == {"False"} or call != "flush"
        assert ended.ended - float(last) < SOON / 2  # less than the time of another close
        seconds = [float(report.split()[0]) for report in reports]
        # A second `close` ends with the first, which may have begun long before it.
        assert (min(seconds) if call == "flush" else max(seconds)) >= 0.95 * timeout
        return max(seconds)

    took = at_once(measure, ["close", "flush", "aclose"], enough)
    assert len(took) == 3
    assert all(seconds <= enough for seconds in took.values()), took


# -- signals -----------------------------------------------------------------------------------------------


def test_a_handler_that_was_there_is_left_alone(run: Run, server: FaultServer) -> None:
    """A server's own handler begins a graceful shutdown, in which the transport is still needed."""
    ended = run(
        f"{HEAD}\ncalls = []\n"
        "handler = lambda number, frame: calls.append(number)\n"
        "signal.signal(signal.SIGTERM, handler)\n"
        "transport = make_transport()\n"
        "assert signal.getsignal(signal.SIGTERM) is handler\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert calls == [signal.SIGTERM] and not transport.closed\n"
        "transport.capture_event(event('after'))\n"
    )
    assert (ended.status, ended.err) == (0, "")
    assert messages(server) == ["after"]


def test_a_handler_that_replaces_ours_and_calls_it_decides_about_the_end(
    run: Run, server: FaultServer
) -> None:
    """It calls the previous handler, as is usual, and continues with its own shutdown."""
    ended = run(
        f"{HEAD}\ntransport = make_transport()\n"
        "previous = signal.getsignal(signal.SIGTERM)\n"
        "assert callable(previous)\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: previous(number, frame))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "transport.capture_event(event('after'))\n"
    )
    assert (ended.status, ended.err) == (0, "")
    assert messages(server) == ["after"]


def test_the_option_leaves_sigterm_alone(run: Run, server: FaultServer) -> None:
    """With `handle_sigterm=False` SIGTERM kills the process at once."""
    ended = run(
        f"{HEAD}\ntransport = make_transport(handle_sigterm=False)\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert ended.status == -signal.SIGTERM


def test_sigterm_while_the_main_thread_holds_the_lock_still_drains(run: Run, server: FaultServer) -> None:
    """The senders need that lock, so the handler lets the main thread continue for a moment."""
    ended = run(
        f"{HEAD}\ntransport = make_transport()\n"
        "transport.capture_event(event('x'))\n"
        "lock = transport._states.get().worker._lock\n"
        "with lock.rlock:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    transport.capture_event(event('inside'))\n"
        "lock.run_deferred()\n"
        "threading.Event().wait(60)\n"
    )
    assert ended.status == -signal.SIGTERM
    assert ended.err == ""
    assert messages(server) == ["inside", "x"]


def test_sigterm_in_the_middle_of_captures_loses_none_that_was_accepted(
    run: Run, server: FaultServer
) -> None:
    """A thread sends it at any point of the main thread: sealing, putting, counting."""
    ended = run(
        f"{HEAD}\ntransport = make_transport()\n"
        "enough = threading.Event()\n"
        "def end():\n"
        "    enough.wait()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=end).start()\n"
        "n = 0\n"
        "while True:\n"
        "    if transport.pending < 2000 and transport.capture_event(event('x' * 2000)):\n"
        "        n += 1; os.write(1, b'.')\n"
        "        if n == 200: enough.set()\n",
    )
    assert ended.status == -signal.SIGTERM, ended.err
    accepted = ended.out.count(".")
    assert accepted >= 200
    # The last one may have been accepted and not printed.
    assert accepted <= len(messages(server)) <= accepted + 1
    assert len(set(server.event_ids())) == len(server.event_ids())


# -- forks -------------------------------------------------------------------------------------------------

FORK = """
transport = make_transport()
{before}
pid = os.fork()
if pid == 0:
    assert transport._states.get().pid == os.getpid()  # the hook has run before any use
    health = transport.health()
    assert health.captured == {{}} and health.state == "new", health
    assert transport.capture_event(event("child"))
    {end}
_, status = os.waitpid(pid, 0)
assert status == 0, status
transport.capture_event(event("parent"))
"""


@pytest.mark.parametrize("before", ["pass", "transport.capture_event(event('before'))"])
@pytest.mark.parametrize("end", ["sys.exit(0)", "assert transport.flush(30.0).ok; os._exit(0)"])
def test_a_forked_child_delivers_its_own_and_nothing_of_its_parents(
    before: str, end: str, run: Run, server: FaultServer
) -> None:
    """The child has new locks, queue, connections and counters, whether the parent was sending or not."""
    ended = run(HEAD + FORK.format(before=before, end=end))
    assert (ended.status, ended.complaints) == (0, "")
    assert messages(server) == sorted(["child", "parent"] + (["before"] if "before" in before else []))


@pytest.mark.parametrize(
    "lock",
    [
        "transport._states.get().worker._lock.rlock",
        "transport._states.get().server._lock",
        "logging.getLogger().handlers[0].lock",
        "other._states.get().lock.rlock",
        "threading._active_limbo_lock",
    ],
)
def test_a_fork_while_a_lock_is_held_hangs_nobody(lock: str, run: Run, server: FaultServer) -> None:
    """The thread that would release the lock does not exist in the child."""
    ended = run(
        f"{HEAD}\nlogging.basicConfig(level=logging.DEBUG, stream=open(os.devnull, 'w'))\n"
        "other = make_transport(lambda envelope: None)\n"
        "transport = make_transport()\n"
        "transport.capture_event(event('before')); transport.flush(30.0)\n"
        "held, release = threading.Event(), threading.Event()\n"
        "def hold():\n"
        f"    with {lock}:\n"
        "        held.set(); release.wait(60)\n"
        "threading.Thread(target=hold).start()\n"
        "held.wait()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    logging.getLogger().debug('child')\n"
        "    assert other.capture_event(event('x')) and other.health().delivered == {'error': 1}\n"
        "    assert transport.capture_event(event('child'))\n"
        "    assert transport.flush(30.0).ok\n"
        "    assert transport.health().delivered == {'error': 1}\n"
        "    os._exit(0)\n"
        "_, status = os.waitpid(pid, 0)\n"
        "release.set()\n"
        "sys.exit(status != 0)\n",
    )
    assert (ended.status, ended.complaints) == (0, "")
    assert messages(server) == ["before", "child"]


def test_a_fork_waits_until_the_first_delivery_has_imported_what_it_needs(
    run: Run, server: FaultServer
) -> None:
    """The lock of a module that is being imported stays locked in the child, whose sender would hang.

    An app that reports at start and then forks its workers forks at such a moment.
    """
    ended = run(
        f"{HEAD}\nfrom importlib.abc import MetaPathFinder\n"
        "begun = threading.Event()\n"
        "class Slow(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'urllib3.util.url' and not begun.is_set():\n"
        "            begun.set()\n"
        "            threading.Event().wait(0.5)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "transport = make_transport()\n"
        "transport.capture_event(event('before'))\n"
        "assert begun.wait(30)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    transport.capture_event(event('child'))\n"
        "    os._exit(0 if transport.flush(30.0).ok else 1)\n"
        "_, status = os.waitpid(pid, 0)\n"
        "sys.exit(status != 0)\n",
    )
    assert (ended.status, ended.complaints) == (0, "")
    assert messages(server) == ["before", "child"]


def test_a_fork_that_no_hook_saw_is_noticed(run: Run, server: FaultServer) -> None:
    """uWSGI forks in C, so each capture checks the process id."""
    ended = run(
        f"{HEAD}\nimport ctypes\n"
        "transport = make_transport()\n"
        "transport.record_lost_event('before_send', 'error', quantity=5)\n"
        "with transport._states.get().worker._lock.rlock:\n"
        "    pid = ctypes.PyDLL(None).fork()\n"
        "    if pid == 0:\n"
        "        assert transport.health().captured == {}\n"
        "        assert transport.capture_event(event('child'))\n"
        "        assert transport.flush(30.0).ok\n"
        "        assert transport.health().delivered == {'error': 1}\n"
        "        os._exit(0)\n"
        "_, status = os.waitpid(pid, 0)\n"
        "sys.exit(status != 0)\n"
    )
    assert (ended.status, ended.err) == (0, "")
    assert messages(server) == ["child"]


def test_a_parent_that_only_forks_starts_no_thread(run: Run, server: FaultServer) -> None:
    """A pre-forking server loads the app once; no child would inherit the parent's threads."""
    ended = run(
        f"{HEAD}\ntransport = make_transport()\n"
        "pids = []\n"
        "for n in range(4):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        transport.capture_event(event(str(n)))\n"
        "        sys.exit(0)\n"
        "    pids.append(pid)\n"
        "assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4\n"
        "assert len(os.listdir('/proc/self/task')) == 1\n"
    )
    assert (ended.status, ended.err) == (0, "")
    assert messages(server) == ["0", "1", "2", "3"]


MULTIPROCESSING = """
import multiprocessing
transport = make_transport()

def work(text):
    assert transport.capture_event(event(text))

if __name__ == "__main__":
    {before}
    context = multiprocessing.get_context(sys.argv[1])
    children = [context.Process(target=work, args=(str(n),)) for n in range(2)]
    for child in children: child.start()
    for child in children: child.join(60)
    assert [child.exitcode for child in children] == [0, 0], children
    with context.Pool(1) as pool:
        pool.map(work, ["pool"])
        pool.close()
        pool.join()
"""


@pytest.mark.parametrize("before", ["pass", "transport.capture_event(event('main')); transport.flush(30.0)"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_delivers_before_it_ends(
    method: str, before: str, run: Run, server: FaultServer
) -> None:
    """It ends by `os._exit`, without atexit, and drops the finalizers of its parent at its start."""
    ended = run(HEAD + MULTIPROCESSING.format(before=before), method)
    assert (ended.status, ended.err) == (0, "")
    assert messages(server) == sorted(["0", "1", "pool"] + (["main"] if "main" in before else []))


def test_an_end_that_both_hooks_see_waits_once_and_says_it_once(run: Run, server: FaultServer) -> None:
    """With multiprocessing loaded, its finalizer and atexit both run."""
    server.fault("hang")
    timeout = scaled(2.0)

    def measure() -> float:
        ended = run(
            f"{HEAD}\nimport multiprocessing.util\n"
            f"transport = make_transport(shutdown_timeout={timeout})\n"
            "transport.capture_event(event('x'))\n"
            "print(time.monotonic(), flush=True)\n"
        )
        assert ended.err == f"transport-kit: 1 envelope not delivered within {timeout:g} s of exit\n"
        return float(ended.ended - float(ended.out))

    assert 0.95 * timeout <= quickest(measure, 1.9 * timeout) <= 1.9 * timeout


# -- many exits --------------------------------------------------------------------------------------------

EXIT = (
    HEAD
    + """
logging.basicConfig(level=logging.DEBUG)
number = int(sys.argv[1])
transport = make_transport(shutdown_timeout=(2.0, 0.0, 0.12, 0.2)[number % 4])
for n in range(number % 7): transport.capture_event(event(str(n)))
if number % 3 == 0: logging.getLogger("app").debug("the last line")
"""
)


def exits(start: Run, server: FaultServer, count: int) -> None:
    def exit_once(number: int) -> tuple[int, int, str]:
        ended = start(EXIT, str(number)).end()
        return number, ended.status, ended.err

    server.answer(503, times=count // 4)
    with ThreadPoolExecutor(4) as threads:
        failures = [result for result in threads.map(exit_once, range(count)) if result[1] != 0]
    assert failures == []


def test_fifty_interpreters_exit_well_at_debug_logging(start: Run, server: FaultServer) -> None:
    """Senders log and send while the interpreter ends: no abort, no hang, no traceback."""
    exits(start, server, 50)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_thousand_interpreters_exit_well_at_debug_logging(start: Run, server: FaultServer) -> None:
    """Finds failures that happen once in a few hundred exits."""
    exits(start, server, 1000)


@pytest.mark.parametrize(
    "forks", [100, pytest.param(2000, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])]
)
def test_forks_under_load_hang_nobody_and_double_nothing(forks: int, run: Run, server: FaultServer) -> None:
    """The parent captures and sends from threads all the time; each child captures, flushes and ends."""
    ended = run(
        f"{HEAD}\ntransport = make_transport()\n"
        "stop = threading.Event()\n"
        "def load():\n"
        "    while not stop.is_set():\n"
        "        if transport.pending < 500: transport.capture_event(event('parent'))\n"
        "for _ in range(3): threading.Thread(target=load, daemon=True).start()\n"
        f"for n in range({forks}):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        ok = transport.capture_event(event(f'child {n}')) and transport.flush(60.0).ok\n"
        "        os._exit(0 if ok else 1)\n"
        "    assert os.waitpid(pid, 0)[1] == 0, n\n"
        "stop.set()\n"
        "assert transport.close(60.0).ok\n",
        timeout=550.0,
    )
    assert ended.complaints == ""
    assert ended.status == 0
    assert [text for text in messages(server) if text != "parent"] == sorted(
        f"child {n}" for n in range(forks)
    )
    assert len(set(server.event_ids())) == len(server.event_ids())
