"""docs/dsl.md: its example runs, and it names the whole frontend."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import tokencake_sglang as tc

DOC = (Path(__file__).parents[2] / "docs/dsl.md").read_text()


def test_the_example_runs_as_it_is_printed(peer, capsys):
    example = re.search(r"```python\n(.*?)```", DOC, re.S).group(1)
    exec(compile(example, "dsl.md", "exec"), {"URL": peer.url})
    assert re.fullmatch(r"word\d+\n", capsys.readouterr().out)
    assert [event["event"] for event in peer.events][:2] == ["stall_started", "stall_finished"]
    assert peer.events[0]["estimated_duration_s"] == pytest.approx(1.7)
    assert peer.generates[0]["tokencake"]["app_id"] == "report-7"


def test_the_dynamic_program_runs_as_it_is_printed(peer, capsys):
    import sglang as sgl

    example = re.search(r"# A dynamic program.*?```python\n(.*?)```", DOC, re.S).group(1)
    scope = {"URL": peer.url}
    try:
        exec(compile(example, "dsl.md", "exec"), scope)
    finally:
        sgl.set_default_backend(None)
    path, answer = capsys.readouterr().out.splitlines()
    assert path.startswith("planner.topics > searcher[1].query > searcher[1].pages")
    assert path.endswith("writer.answer > writer.short")
    counts = {node.name: node.count for node in scope["graph"].value().nodes}
    assert counts["searcher[4].query"] == 1.5 and "searcher[5].query" not in counts
    assert answer.startswith("word")
    assert {body["tokencake"]["app_id"] for body in peer.generates if "tokencake" in body} == {"answer-12"}
    assert sum(event["event"] == "stall_started" for event in peer.events) == 3  # one topic; no verdict says enough


@pytest.mark.parametrize("name", ["tool", "call", "agent"])
def test_each_function_is_documented_with_its_arguments(name):
    heading = re.search(rf"^## `tc\.{name}\((.*)\)`$", DOC, re.M).group(1)
    wanted = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}".replace("'", '"')
        for p in inspect.signature(getattr(tc, name)).parameters.values()
    ]
    assert [part for part in heading.split(", ") if part != "*"] == wanted


def test_every_name_that_the_package_offers_is_mentioned():
    missing = [name for name in tc.__all__ if name != "__version__" and name not in DOC]
    assert missing == []
