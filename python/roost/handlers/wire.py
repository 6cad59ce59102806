"""Joins encoded protobuf messages into one, so that what the engine encoded is not decoded and encoded again.

A protobuf message may be given in parts: appending an encoded field to an encoded message sets that field.
"""

from __future__ import annotations


def field(number: int, data: bytes) -> bytes:
    """One length-delimited field (message, bytes or string), number 1 to 15."""
    size = len(data)
    head = bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data


def repeated(number: int, items: list[bytes]) -> bytes:
    """A repeated length-delimited field."""
    return b"".join([field(number, item) for item in items])
