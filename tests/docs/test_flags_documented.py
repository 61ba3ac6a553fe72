"""The pages name every flag, refusal, event and answer that the code has."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.fingerprint import BLOCK, BLOCKS_KEPT, GRAIN, TEMPLATE_TAIL
from tokencake_sglang.core.recording import SESSIONS_KEPT, Row, Wait
from tokencake_sglang.engine.trace_file import CSV_COLUMNS, JsonlFormat
from tokencake_sglang.server import record, refuse
from tokencake_sglang.server.dialects import HEADER_NAMES, NEEDLES
from tokencake_sglang.server.dialects.convert import MAX_TEXT, NO_NAMES
from tokencake_sglang.server.dialects.resolver import DIALECTS
from tokencake_sglang.server.identity import PATHS
from tokencake_sglang.server.options import allowed_of, flag_of
from tokencake_sglang.server.schema import EVENT_KEYS, MAX_EVENT_BYTES, METADATA_KEYS, OUTCOMES

DOCS = Path(__file__).resolve().parents[2] / "docs"
LAUNCHER = (DOCS / "launcher.md").read_text()
REFUSED = LAUNCHER.split("## What is refused")[1]
API = (DOCS / "control-api.md").read_text()
CLIENTS = (DOCS / "clients.md").read_text()
RECORDING = (DOCS / "recording.md").read_text()


def row_of(page: str, first_cell: str) -> str:
    rows = [line for line in page.splitlines() if line.startswith(f"| {first_cell} |")]
    assert len(rows) == 1, f"{first_cell} has {len(rows)} rows"
    return rows[0]


@pytest.mark.parametrize("field", fields(TokenCakeConfig), ids=lambda field: field.name)
def test_each_setting_has_a_row_with_its_default_and_range(field):
    row = row_of(LAUNCHER, f"`{flag_of(field.name)}`")
    assert f"| {field.default if field.default != '' else 'empty'} | {allowed_of(field)} |" in row


@pytest.mark.parametrize("item", refuse.REFUSALS, ids=lambda item: item.attribute)
def test_each_refusal_has_a_row_with_its_reason_and_remedy(item):
    row = row_of(REFUSED, f"`{item.flag}`")
    assert item.reason in row and item.remedy in row


def test_each_refused_variable_and_kind_of_model_is_named_with_its_reason():
    for name, reason in refuse.ENVIRONMENT:
        assert reason in row_of(LAUNCHER, f"`{name}`")
    for attribute, name, reason in refuse.MODEL_KINDS:
        assert f"`{attribute}`" in row_of(LAUNCHER, name) and reason in row_of(LAUNCHER, name)


def test_the_pages_name_no_flag_that_does_not_exist():
    known = {flag_of(field.name) for field in fields(TokenCakeConfig)} | {"--tokencake-config", record.FLAG}
    assert set(re.findall(r"--tokencake-[a-z][a-z-]*", LAUNCHER + API + RECORDING + CLIENTS)) <= known


def test_the_control_page_names_every_key_event_field_outcome_and_route():
    words = [*METADATA_KEYS, *EVENT_KEYS, *OUTCOMES, *PATHS, *(field for keys in EVENT_KEYS.values() for field in keys)]
    assert [word for word in words if f"`{word}`" not in API] == []
    assert f"{MAX_EVENT_BYTES:,}" in API
    for reason in ("schema", "unauthorized", "unknown_agent", "conflict", "busy", "disabled", "timeout"):
        assert f"`reason: {reason}`" in API


def test_the_clients_page_has_a_row_for_each_dialect_in_the_order_of_precedence():
    rows = re.findall(r"^\| `([\w-]+)` \|", CLIENTS, re.M)
    assert ["tokencake", *rows] == [dialect.name for dialect in DIALECTS]


def test_the_clients_page_names_every_header_key_route_and_bound():
    keys = {rule.path[-1] for dialect in DIALECTS[1:] if not dialect.of_headers for rule in dialect.rules}
    keys -= {"session", "body"}  # sections that the Anthropic dialects make for themselves
    words = [*keys, *NEEDLES, *HEADER_NAMES, *PATHS, *NO_NAMES]
    assert [word for word in words if f"`{word}" not in CLIENTS] == []
    assert f"{MAX_TEXT} characters" in CLIENTS


def test_the_recording_page_names_every_column_field_flag_and_bound():
    row = Row(0, 0, 0, 0, 0, 1, 1, [0], None, 0)
    fields_written = json.loads(JsonlFormat().start(row) + JsonlFormat().end(Wait()))
    assert [name for name in (*CSV_COLUMNS.split(","), *fields_written) if f"`{name}`" not in RECORDING] == []
    assert record.FLAG in RECORDING and all(f"`{ending}`" in RECORDING for ending in record.ENDINGS)
    for number in (SESSIONS_KEPT, BLOCKS_KEPT):
        assert f"{number:,}" in RECORDING
    assert f"each {BLOCK} tokens" in RECORDING and f"multiple of {GRAIN} tokens" in RECORDING
    assert f"at most {TEMPLATE_TAIL} last tokens" in RECORDING
    assert f"the last {TEMPLATE_TAIL + GRAIN} tokens or fewer" in RECORDING
