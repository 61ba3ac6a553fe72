"""The research questions: each with the aspects that its searchers share out and the index words of its subject."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    text: str
    aspects: tuple[str, ...]
    words: tuple[str, ...]


QUESTIONS = (
    Question("How should a long-running program start other programs and stop them after a time limit?",
             ("starting and feeding a child process", "time limits and signals", "collecting output without deadlock",
              "cleaning up groups of processes"),
             ("subprocess", "process", "timeout", "signal", "kill", "pipe", "communicate", "wait", "terminate",
              "group")),
    Question("Which ways exist to run work concurrently, and when does each of them fit?",
             ("threads and locks", "processes and shared memory", "event loops and coroutines",
              "pools, futures and cancellation"),
             ("thread", "lock", "queue", "executor", "future", "asyncio", "coroutine", "semaphore", "pool",
              "cancel")),
    Question("How can structured text be read safely from sources that nobody controls?",
             ("JSON and its limits", "XML and entity attacks", "comma-separated values", "configuration files"),
             ("json", "decode", "xml", "parser", "entity", "csv", "dialect", "configparser", "quote", "escape")),
    Question("What has to be considered when a program stores data in files that must survive a crash?",
             ("atomic replacement of files", "temporary files and folders", "embedded databases", "file locking"),
             ("file", "rename", "replace", "temporary", "directory", "sqlite", "transaction", "flush", "lock",
              "path")),
    Question("How do network clients deal with slow, failing or malicious servers?",
             ("sockets and timeouts", "encrypted connections", "HTTP requests and redirects",
              "retrying and error types"),
             ("socket", "timeout", "ssl", "certificate", "http", "request", "redirect", "response", "error",
              "connection")),
    Question("How is time represented, measured and formatted without mistakes?",
             ("clocks for measuring", "dates and time zones", "parsing and formatting", "scheduling work"),
             ("time", "clock", "datetime", "timezone", "utc", "format", "parse", "calendar", "delta", "schedule")),
    Question("What tools help to find out why a program is slow or uses too much memory?",
             ("profilers", "tracing memory", "micro-benchmarks", "inspecting a running program"),
             ("profile", "trace", "memory", "timeit", "statistics", "frame", "stack", "garbage", "snapshot",
              "dump")),
    Question("How should errors, warnings and events of a program be reported to its operators?",
             ("log records and handlers", "exceptions and tracebacks", "warnings", "rotating and shipping logs"),
             ("logging", "handler", "record", "exception", "traceback", "warning", "filter", "rotate", "stream",
              "level")),
)


def question(seed: int, number: int) -> Question:
    """The question of application `number` in a run with this seed."""
    return QUESTIONS[(seed * 3 + number) % len(QUESTIONS)]
