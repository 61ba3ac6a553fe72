"""Errors that reach a user. Each message says what was asked, what was found, what is allowed, what to do."""


class TokenCakeError(Exception):
    """Base of all errors raised by this package."""


class ConfigError(TokenCakeError, ValueError):
    """A setting is unknown, has the wrong type, or is outside its range."""


class MetadataError(TokenCakeError, ValueError):
    """A client's agent metadata or event does not follow the schema (an HTTP 400)."""


class GraphError(TokenCakeError, ValueError):
    """An agent graph cannot be what was declared: an unknown node, a cycle, a node that nothing leads to."""


class ControlError(TokenCakeError, RuntimeError):
    """A control call was refused. `code` is the HTTP status of the answer (0: there was none), `reason` its word."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
