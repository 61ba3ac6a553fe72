"""Whose requests these are, by a header that the operator names; the queue takes turns between tenants."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

SECRET_HEADERS = ("authorization", "x-api-key")
MAX_NAME = 64


def tenant_of(headers: Iterable[tuple[bytes, bytes]], header: str) -> str | None:
    """The value of the first header of that name (ASGI's pairs); None if there is none or it is empty.

    A secret, and what is too long or not printable, is known by its hash alone.
    """
    wanted = header.lower().encode("latin-1")
    for name, value in headers:
        if name.lower() != wanted:
            continue
        text = value.decode("latin-1").strip()
        if not text:
            return None
        if header.lower() in SECRET_HEADERS or len(text) > MAX_NAME or not text.isprintable():
            return "#" + sha256(value.strip()).hexdigest()[:16]
        return text
    return None
