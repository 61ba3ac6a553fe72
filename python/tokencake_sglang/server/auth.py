"""A 401 of SGLang's api-key check, put into the words and shape of the other TokenCake answers."""

from __future__ import annotations

import json
from typing import Any

from tokencake_sglang.server.routes import PREFIX, error_body

_SENTENCES = {
    401: "this server was started with an API key and the request's key is missing or wrong; allowed: the header"
         " 'Authorization: Bearer <key>'. Send the key of --api-key.",
}


class UnauthorizedSentence:
    """Pure ASGI middleware: on TokenCake's routes only, replaces the body of a 401 by one with a sentence."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        replacing = False

        async def rewrite(message: dict[str, Any]) -> None:
            nonlocal replacing
            if message["type"] == "http.response.start" and message["status"] in _SENTENCES:
                replacing = True
                status = message["status"]
                body = json.dumps(error_body(status, "unauthorized", _SENTENCES[status])).encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                           (b"www-authenticate", b"Bearer")]
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": False})
            elif not replacing:
                await send(message)

        await self.app(scope, receive, rewrite)
