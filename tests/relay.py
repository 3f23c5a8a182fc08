"""Reads envelopes as a Relay does: an assertion fails where Relay would correct, drop or refuse something.

Relay's own normaliser reads events, transactions and feedback. Its package offers nothing for other items, so
sessions, logs and check-ins are compared with the tables of the protocol, and the fields that they share with
events (release, environment, trace) go through the normaliser inside an event made for them.

Needs the native package sentry_relay; `tests/conftest.py` imports this module only for envelopes to read.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests import needs
from transport_kit.envelope import encoder
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.sealed import SealedEnvelope

__all__ = ["normalised", "read"]

processing = needs.module("sentry_relay.processing")

_HEX32 = re.compile(r"(?!0{32})[0-9a-f]{32}")
_HEX16 = re.compile(r"(?!0{16})[0-9a-f]{16}")
_MINUTE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:00Z")
_SEVERITIES = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
_TYPES = {"string": str, "integer": int, "double": float, "boolean": bool}
_UNITS = {"year", "month", "week", "day", "hour", "minute"}


def normalised(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event as Relay keeps it; fail if Relay corrected something or changed an id."""
    result: dict[str, Any] = processing.StoreNormalizer(remove_other=True).normalize_event(event)
    assert "errors" not in result, result["errors"]
    assert _ids(result) == _ids(event)
    assert result["timestamp"] == pytest.approx(event["timestamp"], abs=0.001)
    return result


def _ids(event: dict[str, Any]) -> list[Any]:
    trace = event["contexts"]["trace"]
    spans = event.get("spans") or []
    values = (event.get("exception") or {}).get("values") or []
    return [
        event["event_id"],
        *(trace.get(name) for name in ("trace_id", "span_id", "parent_span_id")),
        *((span["trace_id"], span["span_id"], span.get("parent_span_id")) for span in spans),
        *((value["mechanism"].get("exception_id"), value["mechanism"].get("parent_id")) for value in values),
    ]


def read(sealed: SealedEnvelope) -> None:
    """Fail if Relay would correct, drop or refuse a part of this envelope."""
    envelope = Envelope.deserialize(sealed.serialize("2026-01-02T03:04:05Z"))
    envelope.validate()
    sampling = envelope.headers.get("trace", {})
    assert all(type(value) is str for value in sampling.values())
    for item in envelope:
        if item.type == "attachment":
            assert item.headers["filename"]
            continue
        payload = encoder.loads(item.get_bytes())
        if item.type in ("event", "transaction", "feedback"):
            if "sdk" not in payload:
                continue  # written by hand in the test
            assert payload["event_id"] == envelope.headers["event_id"]
            normalised(payload)
        elif item.type == "sessions":
            _sessions(payload)
        elif item.type == "log":
            assert item.headers["item_count"] == len(payload["items"]) <= 100
            for log in payload["items"]:
                if set(log) != {"body"}:  # the tests of the buffer fill it with these
                    _log(log)
        elif item.type == "check_in":
            _check_in(payload)
        else:
            assert item.type == "client_report", item.type


def _shared(facts: dict[str, Any], trace: dict[str, Any] | None = None) -> None:
    """Fail if Relay would correct the fields that an item shares with events."""
    event = {"event_id": "a" * 32, "timestamp": 1e9, "contexts": {"trace": trace}, **facts}
    result = processing.StoreNormalizer(remove_other=True).normalize_event(event)
    faults = [error for error in result.get("errors", ()) if error["type"] != "past_timestamp"]
    assert not faults
    assert {name: result[name] for name in facts} == facts
    if trace is not None:
        assert {name: result["contexts"]["trace"][name] for name in trace} == trace


def _sessions(payload: dict[str, Any]) -> None:
    assert set(payload) == {"aggregates", "attrs"}
    assert 0 < len(payload["aggregates"]) <= 100
    for bucket in payload["aggregates"]:
        counts = {name: count for name, count in bucket.items() if name != "started"}
        assert _MINUTE.fullmatch(bucket["started"])
        assert set(counts) <= {"exited", "errored", "crashed"}
        assert counts
        assert all(type(count) is int and count > 0 for count in counts.values())
    assert {"release"} <= set(payload["attrs"]) <= {"release", "environment"}
    _shared(payload["attrs"])


def _log(log: dict[str, Any]) -> None:
    assert set(log) == {
        *("timestamp", "trace_id", "span_id", "level", "severity_number", "body", "attributes")
    }
    assert type(log["timestamp"]) is float
    assert _HEX32.fullmatch(log["trace_id"])
    assert _HEX16.fullmatch(log["span_id"])
    assert type(log["body"]) is str
    assert log["severity_number"] == _SEVERITIES[log["level"]]
    for name, attribute in log["attributes"].items():
        assert set(attribute) == {"value", "type"}, name
        assert type(attribute["value"]) is _TYPES[attribute["type"]], name
    _shared({}, {"trace_id": log["trace_id"], "span_id": log["span_id"]})


def _check_in(payload: dict[str, Any]) -> None:
    assert set(payload) <= {
        *("check_in_id", "monitor_slug", "status", "duration", "release", "environment"),
        *("contexts", "monitor_config"),
    }
    assert _HEX32.fullmatch(payload["check_in_id"])
    assert 0 < len(payload["monitor_slug"]) <= 50
    assert payload["status"] in ("in_progress", "ok", "error")
    assert payload.get("duration", 0) >= 0
    assert _HEX32.fullmatch(payload["contexts"]["trace"]["trace_id"])
    _shared({name: payload[name] for name in ("release", "environment") if name in payload})
    if "monitor_config" in payload:
        schedule = payload["monitor_config"]["schedule"]
        assert schedule["type"] in ("crontab", "interval")
        if schedule["type"] == "interval":
            assert schedule["unit"] in _UNITS
            assert schedule["value"] > 0
