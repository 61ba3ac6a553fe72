"""Tells the server when an agent stalls, goes on, and ends. Nothing here may break the program that reports."""

from __future__ import annotations

import json
import logging
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

logger = logging.getLogger(__name__)

EVENTS_PATH = "/v1/tokencake/events"
STATE_PATH = "/v1/tokencake/state"


class EventClient:
    """Sends stall events to one server. Thread-safe; no method raises for what the server or the network does.

    A server without TokenCake (no such route, or 503 because it is disabled) is noticed at the first event, after
    which `is_off` is True and nothing more is sent. Other failures are logged once per kind.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, verify: str | None = None, timeout_s: float = 10.0
    ):
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self.is_off = False
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._tls = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else None
        self._warned: set[str] = set()

    def send(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Post one event. Returns the server's answer (see `refused`), or None if there was none."""
        if self.is_off:
            return None
        body = {key: value for key, value in event.items() if value is not None}
        return self._request(EVENTS_PATH, body)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Post anything else to the control API; the answer as from `send`."""
        return None if self.is_off else self._request(path, body)

    def state(self, agents: int | None = None) -> dict[str, Any] | None:
        """The server's TokenCake state, with at most `agents` agents; None from a server without TokenCake."""
        if self.is_off:
            return None
        answer = self._request(STATE_PATH if agents is None else f"{STATE_PATH}?agents={agents}")
        return None if refused(answer) else answer

    def _request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data=data, headers=self._headers)
        try:
            status, answer = self._exchange(request)
        except (OSError, HTTPException) as error:
            self._warn(type(error).__name__, f"a TokenCake event did not reach {self.base_url}: {error}")
            return None
        return answer if status == 200 else self._refusal(status, answer)

    def _exchange(self, request: urllib.request.Request) -> tuple[int, dict[str, Any] | None]:
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s, context=self._tls) as response:
                return response.status, _json_object(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json_object(error.read())

    def _refusal(self, status: int, answer: dict[str, Any] | None) -> dict[str, Any] | None:
        error = (answer or {}).get("error")
        reason = error.get("reason") if isinstance(error, dict) else None
        if status == 503 or (status == 404 and reason != "unknown_agent"):
            self.is_off = True
            self._warn("off", f"{self.base_url} serves without TokenCake ({status}); programs run without its events")
            return None
        # An agent that has sent no request yet, e.g. whose first step is a tool, is rightly unknown.
        if reason != "unknown_agent":
            self._warn(str(status), f"{self.base_url} refused a TokenCake event ({status}): {error}")
        return answer if reason is not None else None

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s (said once)", message)


def refused(answer: dict[str, Any] | None) -> bool:
    """Whether the server answered with an error: then the event has changed nothing there."""
    return answer is not None and isinstance(answer.get("error"), dict)


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
