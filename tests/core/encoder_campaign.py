"""Encodes hostile values at all distances from the recursion limit, in a process that must survive.

`python -m tests.core.encoder_campaign SEED CASES` prints the numbers of sealed and refused values. A case
depends only on the seed and its number.
"""

from __future__ import annotations

import dataclasses
import enum
import faulthandler
import json
import random
import sys
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from transport_kit.envelope import encoder
from transport_kit.envelope.encoding import encode
from transport_kit.envelope.parsing import parse_envelope
from transport_kit.runtime.errors import InvalidEnvelope, SealError


class Plan(enum.Enum):
    PRO = "pro"
    ODD = (1, {2})
    LIST = list[Any]()  # noqa: RUF012 - filled below
    TUPLE = ((),)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str):
    __slots__ = ()


class Listed(list[Any]):
    pass


class Mapped(dict[Any, Any]):
    pass


class Raising(enum.Enum):
    ONE = 1

    @property
    def value(self) -> Any:
        raise ValueError


class Circular(enum.Enum):
    ONE = 1

    @property
    def value(self) -> Any:
        return self


@dataclasses.dataclass
class Account:
    inner: object


Plan.LIST.value.append((Plan.LIST, [Plan.LIST]))

Wrap = Callable[[Any], Any]
LEAVES: list[Any] = [
    *(None, True, 0, -1, 2**64, 2**70, 1.5, float("nan"), float("inf"), "text", "é\n", "\ud800", b"\xff"),
    *(Plan.PRO, Plan.ODD, Plan.LIST, Plan.TUPLE, Colour.RED, Level.HIGH, Access.READ | Access.WRITE),
    *(
        Text("t"),
        Listed(),
        Mapped(),
        Account(1),
        uuid.UUID(int=1),
        Decimal(1),
        datetime(2026, 1, 1, tzinfo=UTC),
    ),
    *(
        object(),
        int,
        ValueError("v"),
        (),
        [],
        {},
        {1},
        frozenset({"a"}),
        deque([1]),
        MappingProxyType({"a": 1}),
    ),
]
if encoder.NAME != "orjson 3.10.0":
    # The encoder has no guard against these: docs/operations.md.
    LEAVES += [Raising.ONE, Circular.ONE, uuid.UUID.__new__(uuid.UUID)]
WRAPS: list[Wrap] = [
    lambda value: [value],
    lambda value: (value,),
    lambda value: ((value,),),
    lambda value: {"k": value},
    lambda value: {1: value},
    lambda value: [value, value],
    lambda value: {"a": 1, "b": [Plan.PRO, value]},
    lambda value: Listed([value]),
    lambda value: Mapped(k=value),
    lambda value: OrderedDict(k=value),
    lambda value: Account(value),
    lambda value: deque([value]),
    lambda value: {Plan.PRO: value},
]


def hostile(chance: random.Random) -> Any:
    """Return a value: plain, awkward, deep or circular."""
    value = chance.choice(LEAVES)
    depth = chance.choice((0, 1, 3, 10, 10, 60, 253, 254, 255, 300, 3_000, 100_000))
    some = [WRAPS[0], WRAPS[1], WRAPS[2], WRAPS[3]] if depth > 300 else WRAPS
    few = chance.sample(some, chance.randint(1, 3))
    doubled = 0
    end: list[Any] = [value]
    value = end
    for _ in range(depth):
        wrap = chance.choice(few)
        doubled += wrap is WRAPS[5]
        # Two references at each level would not fit into any memory.
        value = wrap(value) if wrap is not WRAPS[5] or doubled < 10 else [value]
    if chance.random() < 0.3 and not doubled:
        end.append(chance.choice((value, (value,), ((value,),), {"back": (value,)})))
    return value


def check(value: Any) -> bool:
    """Encode the value; return True if it was sealed. The result must be JSON."""
    try:
        data = encode(value, "event")
    except (SealError, RecursionError):
        return False
    results.append(data)
    return True


results: list[bytes] = []


def by_frames(levels: int, value: Any) -> bool:
    """Run at a depth of that many frames of Python."""
    return by_frames(levels - 1, value) if levels else check(value)


def by_calls(levels: int, value: Any) -> bool:
    """The same, with a C function between the frames."""
    return next(map(by_calls, (levels - 1,), (value,))) if levels else check(value)


def at_the_limit(value: Any) -> bool:
    """Run in the handler of a RecursionError at the greatest depth, and again at each frame above."""
    try:
        return at_the_limit(value)
    except RecursionError:
        if check(value):
            return True
        raise


def wire(chance: random.Random) -> None:
    """Pass deep text to every parser."""
    depth = chance.choice((10, 254, 255, 1023, 1025, 200_000))
    sign, end = chance.choice((("[", "]"), ('{"a":', "}")))
    text = sign * depth + "1" + end * depth
    try:
        encoder.loads(text[: chance.choice((len(text), depth))])
    except (ValueError, RecursionError):
        pass
    try:
        parse_envelope(b'{"a":%b}\n{"type":"x"}\n' % text.encode())
    except (InvalidEnvelope, RecursionError):
        pass


def case(chance: random.Random) -> bool:
    """Encode one random value, and check the result; return True if it was encoded."""
    value = hostile(chance)
    limit = sys.getrecursionlimit()
    way = chance.random()
    try:
        if way < 0.3:
            sealed = check(value)
        elif way < 0.55:
            sealed = by_frames(limit - chance.randint(0, 60), value)
        elif way < 0.7:
            sealed = by_calls(limit // 2 - chance.randint(0, 60), value)
        elif way < 0.8:
            sealed = by_calls(limit - chance.randint(0, 60), value)
        elif way < 0.95:
            sealed = at_the_limit(value)
        else:
            wire(chance)
            sealed = by_frames(limit - chance.randint(0, 60), value)
    except RecursionError:
        sealed = False
    for data in results:
        json.loads(data)
    results.clear()
    return sealed


def main(seed: str, cases: str) -> None:
    """Run the cases; print the current one on stderr, in case the process dies."""
    faulthandler.enable()
    sealed = 0
    for number in range(int(cases)):
        try:
            sealed += case(random.Random(f"{seed} {number}"))
        except BaseException:
            print(f"case {number} of seed {seed}", file=sys.stderr)
            raise
        if number % 100 == 99:
            print(json.dumps({"done": number + 1, "sealed": sealed}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
