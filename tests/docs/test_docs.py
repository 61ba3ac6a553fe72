"""The documentation says what the code does: settings, counters, constants, patches, links and code blocks."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tokencake_sglang.cli import SUBCOMMANDS
from tokencake_sglang.core import controller, cost_learner, counters, due
from tokencake_sglang.core.config import OFFLOAD_POLICIES, TokenCakeConfig
from tokencake_sglang.core.forecast import curve, presets, quantile, samples
from tokencake_sglang.core.policy import cost, eager, paper, published, score
from tokencake_sglang.core.records import TOTALS, StallRecord
from tokencake_sglang.core.types import Footprint, PoolView
from tokencake_sglang.engine import metrics
from tokencake_sglang.server.options import build_parser

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), ROOT / "patches/README.md"])
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SETTINGS = {f.name: f for f in fields(TokenCakeConfig)}
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def sections(page: Path, level: int = 2) -> dict[str, str]:
    """Headings of one level, in order, with the text below each."""
    parts = re.split(rf"^{'#' * level} (.+)$", FENCE.sub("", text_of(page)), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str) -> dict[str, list[str]]:
    """Rows whose first cell is `code`: that code, and the other cells."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def blocks(language: str) -> list[tuple[str, str]]:
    return [(name, code) for name, page in zip(PAGE_NAMES, PAGES, strict=True)
            for found, code in FENCE.findall(text_of(page)) if found == language]


def slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


# -- settings, counters, constants ------------------------------------------------------------------------------


def test_tuning_has_one_heading_for_each_setting_in_the_order_of_the_code():
    assert list(sections(DOCS / "tuning.md")) == list(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_tuning_states_the_default_and_what_is_allowed(name):
    setting, text = SETTINGS[name], sections(DOCS / "tuning.md")[name]
    meta = setting.metadata
    allowed = "any path"
    if meta["choices"] or meta["low"] is not None:
        allowed = ", ".join(meta["choices"]) if meta["choices"] else f"{meta['low']:.0f} to {meta['high']:.0f}"
    assert f"Default: {setting.default if setting.default != '' else 'empty'}. Allowed: {allowed}.\n" in text
    assert ("Unit: " in text) == (meta["choices"] is None)
    assert name.endswith("_s") == ("Unit: seconds." in text)


def test_every_counter_is_documented_and_no_other():
    assert list(table(sections(DOCS / "counters.md")["counters"])) == list(counters.COUNTERS)


@pytest.mark.parametrize(("heading", "values"), [("pool", PoolView), ("agents: tokens", Footprint)])
def test_every_gauge_is_documented_and_no_other(heading, values):
    assert list(table(sections(DOCS / "counters.md")[heading])) == [f.name for f in fields(values)]


def test_every_field_of_a_stall_is_documented_and_no_other():
    text = sections(DOCS / "counters.md")["stalls"]
    assert list(table(text)) == list(StallRecord("a", None, "tool", 0.0, 1.0).report())
    assert [name for name in TOTALS if f"`{name}`" not in text.split("`stall_totals`")[1]] == []


def test_every_metric_is_documented_and_no_other():
    assert list(table(sections(DOCS / "counters.md")["metrics"])) == list(metrics.NAMES)


def test_every_policy_has_its_heading():
    assert set(OFFLOAD_POLICIES) <= set(sections(DOCS / "policies.md"))


def constants_of(path: str) -> dict[str, object]:
    """Top-level constants of a file that may not be imported here."""
    tree = ast.parse((ROOT / "python/tokencake_sglang" / path).read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: eval(ast.unparse(node.value)) for node in assigned if node.targets[0].id.isupper()}


def test_the_constants_of_the_policy_the_controller_and_the_costs_are_documented_with_their_values():
    found = {name: cells[0] for name, cells in table(text_of(DOCS / "policies.md")).items() if name.isupper()}
    used = {name: value for module in (cost, eager, published, paper, score)
            for name, value in vars(module).items() if name.isupper()}
    used |= {name: value for module in (controller, due) for name, value in vars(module).items()
             if re.fullmatch(r"[A-Z_]+(_S|_STEP)", name)}
    used |= constants_of("core/uploads.py") | constants_of("core/upload_plan.py")
    used |= constants_of("core/spatial/beside.py")
    used |= {name: getattr(cost_learner, name) for name in vars(cost_learner) if name.isupper()}
    used |= constants_of("engine/measure.py")
    assert found == {name: str(value) for name, value in used.items()}


def test_the_constants_and_presets_of_the_forecast_are_documented_with_their_values():
    rows = table(text_of(DOCS / "forecast.md"))
    modules = (curve, presets, quantile, samples)
    used = {name: value for module in modules for name, value in vars(module).items()
            if name.isupper() and isinstance(value, (int, float))}
    for name in ("KNEE", "LOG_LIMIT", "MEAN_DEVIATION", "NORMAL_END"):  # details of the arithmetic
        del used[name]
    assert {name: cells[0] for name, cells in rows.items() if name.isupper()} == {k: str(v) for k, v in used.items()}
    documented = {name: (float(cells[0]), float(cells[1])) for name, cells in rows.items() if name in presets.PRESETS}
    assert documented == presets.PRESETS


def test_every_reason_of_a_decline_is_documented():
    engine = ROOT / "python/tokencake_sglang/engine"
    files = [engine / name for name in ("moves.py", "offloads.py", "uploads.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    reasons = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.keyword) and node.arg == "reason":
            reasons |= {leaf.value for leaf in ast.walk(node.value) if isinstance(leaf, ast.Constant)}
    reasons -= {"no offload is under way"}  # of a cancel, which is not counted
    documented = table(sections(DOCS / "policies.md")["Declines"])
    assert reasons and {reason for reason in reasons if isinstance(reason, str)} == set(documented)


# -- patches ----------------------------------------------------------------------------------------------------


def test_every_patch_has_its_heading_in_order_and_no_other_patch_has_one():
    headings = [name for name in sections(DOCS / "patches.md") if name.endswith(".patch")]
    assert headings == sorted(path.name for path in (ROOT / "patches").glob("*.patch"))


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "patches").glob("*.patch")))
def test_a_patch_says_what_why_which_test_and_when_it_goes(name):
    text = sections(DOCS / "patches.md")[name]
    assert re.findall(r"^- \*\*(.+?):\*\*", text, re.M) == ["What", "Why", "Test", "Remove when"]
    test = re.search(r"\*\*Test:\*\* `([^`]+)`", text).group(1)
    assert (ROOT / test).is_file()


def test_the_number_of_patches_in_the_changelog_is_right():
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve",
             "Thirteen", "Fourteen")
    count = len(list((ROOT / "patches").glob("*.patch")))
    assert f"- {words[count]} patches to SGLang" in text_of(ROOT / "CHANGELOG.md")


# -- decisions and dependencies ---------------------------------------------------------------------------------


def test_decisions_are_numbered_without_gaps_and_have_the_same_three_parts():
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{i + 1:04}" for i in range(len(pages))]
    for number, page in enumerate(pages, 1):
        text = text_of(page)
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^\*\*(.+?)\.\*\*", text, re.M) == ["Context", "Choice", "Given up"], page.name


def documented_packages() -> set[str]:
    return {line.split("|")[1].strip() for line in text_of(DOCS / "dependencies.md").splitlines() if "|" in line}


def test_every_required_package_has_its_line():
    required = set(re.findall(r'"([a-z0-9-]+)[=><]=', (ROOT / "setup.py").read_text(encoding="utf-8")))
    assert {"sglang", "pytest"} <= required <= documented_packages()


def test_every_imported_package_has_its_line():
    known = documented_packages() | sys.stdlib_module_names | {"tokencake_sglang"}
    for path in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in {module.split(".")[0] for module in modules}:
                assert {"yaml": "pyyaml"}.get(module, module) in known, f"{path} imports {module}"


# -- links and code blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_every_relative_link_leads_somewhere(page):
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r"^#+ (.+)$", text_of(goal), re.M)}, f"{page.name}: {target}"


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_every_python_block_is_python(page, code):
    compile(code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def commands() -> list[tuple[str, str]]:
    """Single commands of the shell blocks: continuations joined, comments dropped, pipes and lists cut."""
    found = []
    for name, code in blocks("bash") + blocks("sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = re.split(r"\s(?:&&|\|\||[|;&])\s", line)
            found += [(name, word.strip()) for word in words if word.strip() and not word.strip().startswith("#")]
    return found


def modules_and_files(words: list[str]) -> tuple[list[str], list[str]]:
    modules = [after for word, after in zip(words, words[1:], strict=False) if word == "-m"]
    places = ("scripts/", "examples/", "tests/", "patches/", "docs/", "python/")
    return modules, [word.split("::")[0] for word in words if word.startswith(places) and "<" not in word]


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_shell_command_names_what_exists(page, command):
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return  # a part of a quoted text over several lines
    modules, files = modules_and_files(words)
    for module in modules:
        if module.startswith("tokencake_sglang"):
            path = ROOT / "python" / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page}: {module}"
    for file in files:
        assert (ROOT / file).exists(), f"{page}: {file}"
    if words[:1] == ["tokencake"] and len(words) > 1:
        assert words[1] in SUBCOMMANDS, f"{page}: {command}"
    flags = build_parser()._option_string_actions
    for word in words:
        if word.startswith(("--tokencake", "--enable-tokencake")):
            assert word.split("=")[0] in flags, f"{page}: {word}"
