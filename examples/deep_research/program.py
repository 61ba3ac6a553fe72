"""The deep-research program: planner, parallel searchers, reflector (two rounds at most), writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sglang as sgl

import tokencake_sglang as tc
from common.apps import AppContext
from common.delay import pause
from deep_research import prompts
from deep_research.index import SearchIndex
from deep_research.questions import Question, question

SEARCHES_PER_AGENT = 2
MAX_ROUNDS = 2


def make_search(index: SearchIndex, delay_s: float) -> tc.Tool:
    """The search tool: a real query on the index after a pause of about `delay_s` seconds for the remote engine."""
    @tc.tool(kind="search", stages=[tc.Stage("network", delay_s), tc.Stage("query", 0.02)], hint="steady",
             timeout=60 + 10 * delay_s)
    def search(query: str) -> str:
        pause(delay_s, query)
        hits = index.search(query)
        if not hits:
            return f"No document contains any word of: {query}"
        return "\n".join(f"[{hit.title}] {hit.text}" for hit in hits)

    return search


def plan_schema(subject: Question) -> str:
    item = {"type": "string", "enum": list(subject.aspects)}
    return json.dumps({"type": "object", "properties": {"first": item, "second": item, "third": item},
                       "required": ["first", "second", "third"]})


def search_schema(words: list[str], free: bool) -> str:
    word: dict[str, Any] = {"type": "string", "maxLength": 30} if free else {"type": "string", "enum": words}
    return json.dumps({
        "type": "object",
        "properties": {"tool": {"type": "string", "enum": ["search"]},
                       "words": {"type": "array", "items": word, "minItems": 2, "maxItems": 3}},
        "required": ["tool", "words"]})


def reflect_schema(subject: Question) -> str:
    return json.dumps({
        "type": "object",
        "properties": {"enough": {"type": "boolean"}, "missing": {"type": "string", "enum": list(subject.aspects)}},
        "required": ["enough", "missing"]})


def parsed(text: str) -> dict[str, Any]:
    """The JSON object in `text`; empty if the model was cut off before its end."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@tc.agent(type="planner", role="splits the question into aspects")
def planner(s: Any, ctx: AppContext, subject: Question, count: int) -> list[str]:
    s += sgl.system(prompts.PLANNER)
    s += sgl.user(f"Question: {subject.text}\nAspects to choose from: {'; '.join(subject.aspects)}\n"
                  f"Number of searchers: {count}")
    text = ctx.write(s, "planner", "plan", 96, json_schema=plan_schema(subject))
    ctx.doing("planner", "")
    chosen = [v for v in parsed(text).values() if v in subject.aspects]
    ordered = list(dict.fromkeys(chosen + list(subject.aspects)))
    return [ordered[i % len(ordered)] for i in range(count)]


@tc.agent(type="searcher", role="answers one aspect from the index", objective="throughput")
def searcher(s: Any, ctx: AppContext, name: str, subject: Question, aspect: str, known: str, search: tc.Tool) -> str:
    s += sgl.system(prompts.SEARCHER)
    s += sgl.user(f"Question: {subject.text}\nYour aspect: {aspect}\nWords: {', '.join(subject.words)}\n"
                  f"Searches you may make: {SEARCHES_PER_AGENT}\nKnown already:\n{known or 'nothing'}")
    left = words_for(subject, aspect, later=bool(known))
    for number in tc.loop(SEARCHES_PER_AGENT):
        text = ctx.write(s, name, f"query{number}", 64, json_schema=search_schema(left, ctx.free))
        asked = [str(w) for w in parsed(text).get("words", [])] or [aspect]
        left = [w for w in left if w not in asked] or left
        ctx.use(s, name, search, {"query": " ".join(asked)}, f"found{number}",
                then=sgl.user("Search results:\n" + tc.value(f"found{number}")))
    s += sgl.user("Write the summary of your aspect now.")
    summary = ctx.write(s, name, "summary", 320 if ctx.free else 32)
    ctx.doing(name, "")
    return summary


def words_for(subject: Question, aspect: str, later: bool) -> list[str]:
    """Six of the subject's words, from another place for every aspect and round, so that searchers find other texts."""
    turn = 2 * subject.aspects.index(aspect) + (5 if later else 0)
    return list(subject.words[turn:] + subject.words[:turn])[:6]


@tc.agent(type="reflector", role="says what is missing")
def reflector(s: Any, ctx: AppContext, subject: Question, summaries: str, number: int) -> str:
    s += sgl.system(prompts.REFLECTOR)
    s += sgl.user(f"Question: {subject.text}\nAspects: {'; '.join(subject.aspects)}\n\nSummaries:\n{summaries}")
    text = ctx.write(s, "reflector", f"verdict{number}", 64, json_schema=reflect_schema(subject))
    ctx.doing("reflector", "")
    answer = parsed(text)
    return "" if answer.get("enough", True) else str(answer.get("missing", ""))


@tc.agent(type="writer", role="writes the report")
def writer(s: Any, ctx: AppContext, subject: Question, summaries: str) -> str:
    s += sgl.system(prompts.WRITER)
    s += sgl.user(f"Question: {subject.text}\n\nSummaries:\n{summaries}\n\nWrite the report.")
    report = ctx.write(s, "writer", "report", 800 if ctx.free else 48)
    ctx.doing("writer", "")
    return report


def make_app(index: SearchIndex, searchers: int, delay_s: float, seed: int,
             expected_rounds: float | None = None) -> Callable[[AppContext, int], str]:
    """One application answers one question; returns a one-line note for the progress display.

    `expected_rounds` is for a derived graph; without it, that has the rounds of the sample of what the reflector says.
    """
    search = make_search(index, delay_s)

    def app(ctx: AppContext, number: int) -> str:
        subject, notes = question(seed, number), []
        aspects = ctx.run(planner, subject=subject, count=searchers)

        def is_enough() -> bool:
            return not aspects

        for turn in tc.loop(MAX_ROUNDS, until=is_enough, expected=expected_rounds):
            rows = [{"name": f"searcher{turn + 1}.{i}", "subject": subject, "aspect": aspect,
                     "known": "\n".join(notes), "search": search} for i, aspect in enumerate(aspects)]
            found = ctx.map(searcher, rows)
            notes += [f"- {aspect}: {summary}" for aspect, summary in zip(aspects, found, strict=True)]
            missing = ctx.run(reflector, subject=subject, summaries="\n".join(notes), number=turn)
            aspects = [aspect for aspect in subject.aspects if aspect == missing]
        report = ctx.run(writer, subject=subject, summaries="\n".join(notes))
        if ctx.free:
            ctx.result.outputs["report"] = report
        return f"{turn + 1} round(s), {len(notes)} summaries, report of {len(report)} characters"

    return app
