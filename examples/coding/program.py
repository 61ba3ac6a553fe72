"""The coding program: architect, programmers in parallel, reviewer with two views, tester, revisor in a loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sglang as sgl

import tokencake_sglang as tc
from coding import prompts
from coding.tasks import Function, Task, one_of, task, wanted
from coding.tools import Tools, failed, make_tools, passed, workspace
from common.apps import AppContext

MAX_REVISIONS = 3


def body_constraint(function: Function, tried: list[str], free: bool) -> dict[str, str]:
    """In constrained mode one of the bodies that were not tried yet; in free mode any one return statement."""
    if free:
        return {"regex": r"return [^\n]{1,160}"}
    return {"regex": one_of([body for body in function.bodies() if body not in tried])}


def plan_schema(job: Task) -> str:
    name = {"type": "string", "enum": [f.name for f in job.functions]}
    care = {"type": "string", "enum": ["normal", "careful"]}
    properties = {"first": name, "review": care}
    return json.dumps({"type": "object", "properties": properties, "required": list(properties)})


@tc.agent(type="architect", role="plans the library")
def architect(s: Any, ctx: AppContext, job: Task, tools: Tools) -> str:
    s += sgl.system(prompts.ARCHITECT)
    s += sgl.user(f"Wanted: {job.title}, with these functions:\n{wanted(job)}")
    plan = ctx.write(s, "architect", "plan", 80, json_schema=plan_schema(job))
    ctx.use(s, "architect", tools.write_file, {"path": "PLAN.json", "content": plan}, "written")
    s += sgl.user("The plan is stored. Add design notes for the programmers.")
    notes = ctx.write(s, "architect", "notes", 200 if ctx.free else 24)
    ctx.doing("architect", "")
    return f"Plan: {plan}\nNotes: {notes}"


@tc.agent(type="programmer", role="writes one function", objective="throughput")
def programmer(s: Any, ctx: AppContext, job: Task, design: str, function: Function, tools: Tools) -> str:
    name = f"programmer-{function.name}"
    s += sgl.system(prompts.PROGRAMMER)
    s += sgl.user(f"The library: {job.title}\n{wanted(job)}\n{design}\nYour function: {function.signature}"
                  " Write its body, one return statement.")
    body = ctx.write(s, name, "body", 96, **body_constraint(function, [], ctx.free))
    path = f"{function.name}.py"
    ctx.use(s, name, tools.write_file, {"path": path, "content": function.source(body)}, "written")
    checked = ctx.use(s, name, tools.check_file, {"path": path}, "checked")
    s += sgl.user(f"{s['written']}\n{checked}\nYour note for the reviewer:")
    ctx.write(s, name, "note", 80 if ctx.free else 16)
    ctx.doing(name, "")
    return body


@tc.agent(type="reviewer", role="judges the code from two sides")
def reviewer(s: Any, ctx: AppContext, job: Task, tools: Tools) -> str:
    s += sgl.system(prompts.REVIEWER)
    s += sgl.user(f"The library: {job.title}\n{wanted(job)}")
    sources = ctx.use(s, "reviewer", tools.read_files, {"paths": [f"{f.name}.py" for f in job.functions]}, "sources")
    s += sgl.user(f"The files:\n{sources}")
    ctx.doing("reviewer", "")
    views = s.fork(2)
    for view, (label, ask) in zip(views, REVIEW_VIEWS, strict=True):
        view += sgl.user(ask)
        view += sgl.assistant(sgl.gen(f"{label}_review", max_tokens=120 if ctx.free else 24, ignore_eos=not ctx.free))
        view += sgl.user("Verdict:")
    tc.barrier(views)  # nobody judges before both have said what they saw
    verdicts = []
    for view, (label, _) in zip(views, REVIEW_VIEWS, strict=True):
        ctx.note(view, f"reviewer-{label}", f"{label}_review")
        verdicts.append(ctx.choose(view, f"reviewer-{label}", f"{label}_verdict", ["approve", "change"]))
        ctx.doing(f"reviewer-{label}", "")
    views.join()
    return ", ".join(f"{label}: {verdict}" for (label, _), verdict in zip(REVIEW_VIEWS, verdicts, strict=True))


REVIEW_VIEWS = (("meaning", "Does the code do what the descriptions say?"),
                ("style", "Is the code written as the rules want it?"))


@tc.agent(type="tester", role="runs the tests")
def tester(s: Any, ctx: AppContext, job: Task, tools: Tools) -> str:
    s += sgl.system(prompts.TESTER)
    s += sgl.user(f"The library: {job.title}\n{wanted(job)}\nThe tests are written. Run them.")
    for f in job.functions:
        test = {"path": f"test_{f.name}.py", "content": f.test_source()}
        ctx.use(s, "tester", tools.write_file, test, f"test_{f.name}")
    output = ctx.use(s, "tester", tools.run_tests, {"attempt": 0}, "tests")
    s += sgl.user(f"The tests printed:\n{output}")
    ctx.write(s, "tester", "finding", 48, regex=one_of([f"look at {f.name} first" for f in job.functions]))
    ctx.doing("tester", "")
    return output


@tc.agent(type="revisor", role="mends what fails")
def revisor(s: Any, ctx: AppContext, job: Task, review: str, bodies: dict[str, str], output: str,
            tools: Tools) -> tuple[bool, int]:
    tried = {f.name: [bodies[f.name]] for f in job.functions}
    s += sgl.system(prompts.REVISOR)
    s += sgl.user(f"The library: {job.title}\n{wanted(job)}\nReview: {review}\nThe tests printed:\n{output}")

    def is_done() -> bool:
        return passed(output)

    attempt = 0
    for _ in tc.loop(0 if is_done() else MAX_REVISIONS, until=is_done):
        attempt += 1
        for f in (f for f in job.functions if failed(f.name, output) and has_more(f, tried[f.name], ctx.free)):
            s += sgl.user(f"Another body for {f.signature}")
            body = ctx.write(s, "revisor", f"{f.name}_{attempt}", 96, **body_constraint(f, tried[f.name], ctx.free))
            tried[f.name].append(body)
            ctx.use(s, "revisor", tools.write_file, {"path": f"{f.name}.py", "content": f.source(body)},
                    f"{f.name}_{attempt}_written")
        output = ctx.use(s, "revisor", tools.run_tests, {"attempt": attempt}, f"tests{attempt}")
        s += sgl.user(f"The tests printed:\n{output}")
    ctx.doing("revisor", "")
    return is_done(), attempt


def has_more(function: Function, tried: list[str], free: bool) -> bool:
    return free or any(body not in tried for body in function.bodies())


def make_app(delay_s: float, seed: int) -> Callable[[AppContext, int], str]:
    """One application builds one library; returns a one-line note for the progress display."""
    def app(ctx: AppContext, number: int) -> str:
        job = task(seed, number)
        with workspace() as space:
            tools = make_tools(space, delay_s)
            design = ctx.run(architect, job=job, tools=tools)
            rows = [{"job": job, "design": design, "function": f, "tools": tools} for f in job.functions]
            written = ctx.map(programmer, rows)
            bodies = {f.name: body for f, body in zip(job.functions, written, strict=True)}
            review = ctx.run(reviewer, job=job, tools=tools)
            output = ctx.run(tester, job=job, tools=tools)
            is_mended, attempts = ctx.run(revisor, job=job, review=review, bodies=bodies, output=output, tools=tools)
        return f"{job.title}: {'tests pass' if is_mended else 'tests still fail'} after {attempts} revision(s)"

    return app
