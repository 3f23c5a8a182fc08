"""Envelopes that real clients sent: the parser and the sealed forms keep every payload byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transport_kit.envelope.envelope import Envelope

CORPUS = Path(__file__).parent.parent / "data" / "corpus"
FILES = sorted(CORPUS.glob("*.envelope"))
MANIFEST = {entry["file"]: entry for entry in json.loads((CORPUS / "manifest.json").read_text())}


def _payloads(envelope: Envelope) -> list[tuple[str, bytes]]:
    return [(item.type, item.get_bytes()) for item in envelope]


def test_the_corpus_is_there() -> None:
    """An empty glob would make every test below pass."""
    assert len(FILES) > 50
    assert {file.name for file in FILES} == set(MANIFEST)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_payloads_survive_parsing_serialising_and_sealing(file: Path) -> None:
    """A forwarder that changes one byte of an attachment or of a signed payload corrupts it."""
    data = file.read_bytes()
    parsed = Envelope.deserialize(data)
    assert all(payload in data for _, payload in _payloads(parsed))
    assert [item.type for item in parsed] == [item["type"] for item in MANIFEST[file.name]["items"]]
    assert _payloads(Envelope.deserialize(parsed.serialize())) == _payloads(parsed)
    sealed = parsed.seal()
    assert [(item.type, item.payload) for item in sealed.items] == _payloads(parsed)
    assert sealed.packed().unpacked().serialize() == sealed.serialize()
    assert sealed.size == len(sealed.serialize())
    assert sealed.event_id == parsed.headers.get("event_id")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_real_clients_send_passes_validation(file: Path) -> None:
    """A check that refuses what the official SDKs send would be wrong about the protocol."""
    envelope = Envelope.deserialize(file.read_bytes())
    envelope.validate()
    assert envelope.items
