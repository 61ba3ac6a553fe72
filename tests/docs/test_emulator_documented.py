"""docs/emulator.md names every flag of `tokencake emulate`, and every field, column and plot of its report."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.support.emulation import run_document
from tokencake_sglang.emulator import cli, request, table
from tokencake_sglang.emulator.cells import Experiment, Grid
from tokencake_sglang.emulator.report import build_report
from tokencake_sglang.emulator.spec import Configuration

PAGE = (Path(__file__).resolve().parents[2] / "docs/emulator.md").read_text(encoding="utf-8")


def part(start: str, end: str = r"\n#") -> str:
    """The text after a heading or line, up to the next heading."""
    return re.split(end, PAGE.split(f"\n{start}\n", 1)[1], maxsplit=1)[0]


def first_cells(text: str) -> list[str]:
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]


def codes(text: str) -> list[str]:
    return [code for cell in first_cells(text) for code in re.findall(r"`([^`]+)`", cell)]


def parsed_flags() -> dict[str, argparse.Action]:
    actions = cli.build_parser()._actions
    return {one.option_strings[0]: one for one in actions if one.option_strings and one.dest != "help"}


def documented_flags() -> list[str]:
    return codes(part("## Command line").split("| exit status")[0])


def test_every_flag_has_its_row_in_the_order_of_the_parser():
    assert [code.split()[0] for code in documented_flags()] == list(parsed_flags())


def test_a_flag_takes_a_value_in_the_table_if_it_takes_one():
    for row, action in zip(documented_flags(), parsed_flags().values(), strict=True):
        assert (" " in row) == (action.nargs != 0), row


def test_the_defaults_in_the_table_are_those_of_the_code():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `--")]
    stated = {re.match(r"\| `(--[a-z-]+)", row).group(1): row.split("|")[2].strip() for row in rows}
    assert stated["--profile"] == request.DEFAULT_PROFILE
    assert stated["--plots"] == cli.build_parser().get_default("plots")
    assert f"{Grid().host_ratios[0]:g}" == stated["--host-ratio"] and f"{Grid().seeds[0]}" == stated["--seed"]


def test_every_field_of_a_configuration_has_its_row():
    assert codes(part("### Own configurations")) == [f.name for f in fields(Configuration) if f.name != "name"]


@pytest.fixture(scope="module")
def report():
    plan = Experiment("code_writer", {}, Grid().cells(), (Configuration("stock-lru"),), "a-profile")
    return build_report(plan, {job.file: run_document(job.spec, [1.0]) for job in plan.jobs()}, [])


@pytest.mark.parametrize(("line", "end", "found"), [
    ("### report.json", r"\nA cell:\n", lambda report: report),
    ("A cell:", r"\nA run:\n", lambda report: report["cells"][0]),
    ("A run:", r"\nA group:\n", lambda report: report["cells"][0]["runs"][0]),
    ("A group:", r"\n#", lambda report: report["groups"][0]),
])
def test_every_field_of_the_report_has_its_row_and_no_other(report, line, end, found):
    assert sorted(codes(part(line, end))) == sorted(found(report))


def test_every_figure_of_a_row_is_named(report):
    row = next(line for line in PAGE.splitlines() if line.startswith("| `rows` |"))
    assert set(re.findall(r"`([^`]+)`", row)) == {"rows", "median", "low", "high"} | set(report["groups"][0]["rows"][0])


def test_every_column_of_the_tables_has_its_row():
    stated = [name.strip() for cell in first_cells(part("### The tables")) for name in cell.split(",")]
    columns = [column[0] for column in table.OUTCOME] + ["equal"]
    columns += [column[0] for column in (*table.COUNTS, *table.RETURNS)]
    assert sorted(stated) == sorted(columns)
