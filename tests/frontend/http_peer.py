"""A small HTTP server that speaks the part of SGLang's and TokenCake's protocol that a frontend program uses.

It is a peer for protocol tests: it generates no language, answers `/generate` with numbered words, and records every
request in order of arrival. What the real server does is tested against the real server.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HttpPeer:
    """`requests` holds (path, body) in order of arrival; `tokencake` is "on", "absent" (404) or "disabled" (503)."""

    def __init__(self, tokencake: str = "on"):
        self.tokencake = tokencake
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.known_agents: set[str] = set()
        self.fail_generate_with: int | None = None
        self.prefill_gate: threading.Event | None = None  # what answers that generate nothing wait for
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"peer": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop serving; more than once does no harm."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def generates(self) -> list[dict[str, Any]]:
        """The bodies of all /generate requests so far, oldest first."""
        return [body for path, body in self.requests if path == "/generate"]

    @property
    def graphs(self) -> list[dict[str, Any]]:
        """The bodies of all graphs so far, oldest first."""
        return [body for path, body in self.requests if path == "/v1/tokencake/graphs"]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The bodies of all events so far, oldest first, whether or not they were accepted."""
        return [body for path, body in self.requests if path == "/v1/tokencake/events"]

    def record(self, path: str, body: Any, headers: Any) -> int:
        with self._lock:
            self.requests.append((path, body))
            self.headers.append(dict(headers))
            for identity in [body.get("tokencake")] if isinstance(body, dict) else []:
                if identity:
                    self.known_agents.add(identity["agent_id"])
            return len(self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    peer: HttpPeer

    def log_message(self, *_args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.peer.record(self.path, None, self.headers)
        if path == "/get_model_info":
            self._answer(200, {"model_path": "peer", "is_generation": True})
        elif path == "/v1/tokencake/state":
            self._control(lambda: (200, {"enabled": True, "agents": sorted(self.peer.known_agents)}))
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
        number = self.peer.record(self.path, body, self.headers)
        if self.path == "/generate":
            self._generate(body, number)
        elif self.path == "/v1/tokencake/events":
            self._control(lambda: self._event(body))
        elif self.path == "/v1/tokencake/graphs":
            self._control(lambda: (200, {"status": "applied", "message": "done", "graph_id": "by the client"}))
        else:
            self._answer(404, {"detail": "Not Found"})

    def _control(self, answer: Any) -> None:
        if self.peer.tokencake == "absent":
            self._answer(404, {"detail": "Not Found"})
        elif self.peer.tokencake == "disabled":
            self._answer(503, {"error": {"code": 503, "reason": "disabled", "message": "TokenCake is off."}})
        else:
            self._answer(*answer())

    def _event(self, event: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if event["agent_id"] not in self.peer.known_agents:
            message = f"no request has named agent {event['agent_id']!r}"
            return 404, {"error": {"code": 404, "reason": "unknown_agent", "message": message}}
        return 200, {"status": "applied", "message": "done"}

    def _generate(self, body: dict[str, Any], number: int) -> None:
        if self.peer.fail_generate_with is not None:
            self._answer(self.peer.fail_generate_with, {"error": {"message": "the peer was told to fail"}})
        elif isinstance(body.get("text"), list):
            self._answer(200, [self._scored(text) for text in body["text"]])
        elif body["sampling_params"].get("max_new_tokens") == 0:
            if self.peer.prefill_gate is not None:
                self.peer.prefill_gate.wait(30)
            self._answer(200, self._scored(body["text"]) | {"text": ""})
        elif body.get("stream"):
            self._stream(f"word{number} word{number}")
        else:
            self._answer(200, {"text": f"word{number}", "meta_info": {"prompt_tokens": 1}})

    def _scored(self, text: str) -> dict[str, Any]:
        logprobs = [[-1.0 * len(text), 1, text[:1]], [-1.0 * len(text), 2, text[-1:]]]
        meta = {"prompt_tokens": len(text), "input_token_logprobs": logprobs, "output_token_logprobs": logprobs}
        return {"text": "", "meta_info": meta}

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for end in range(1, len(text) + 1):
            chunk = {"text": text[:end], "meta_info": {"prompt_tokens": 1}}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _answer(self, status: int, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
