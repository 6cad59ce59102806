"""The one field that the store reads out of a session's facts, without the cost of a whole decode."""

from __future__ import annotations

# roost.store.v1.SessionFacts.state_seq
_STATE_SEQ = 7


def state_seq(facts: bytes) -> int:
    """The rowid of the record that holds the client's state, 0 if none.

    0 as well for damaged facts: one session is no reason for the store to fail. The engine, which decodes all of them
    and verifies the state against its digest, says that the session is corrupt.
    """
    place, end, value = 0, len(facts), 0
    try:
        while place < end:
            tag, place = _varint(facts, place)
            wire = tag & 7
            if wire == 0:
                number, place = _varint(facts, place)
                if tag >> 3 == _STATE_SEQ:
                    value = number  # the last one counts, as in every protobuf reader
            elif wire == 1:
                place += 8
            elif wire == 2:
                size, place = _varint(facts, place)
                place += size
            elif wire == 5:
                place += 4
            else:
                raise IndexError
    except IndexError:
        return 0
    return value if place == end and value < 1 << 63 else 0


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at `place` and the place after it. IndexError if it does not end."""
    value = shift = 0
    while shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise IndexError
