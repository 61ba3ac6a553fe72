"""The rules of the series: our own keeps them, and each broken rule is found."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from patch_lab import A1, B1, HEADER

from tokencake_sglang.patching.series import Series, default_directory, parse_header

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "scripts" / "check_patches.py"


@pytest.fixture
def rules():
    spec = importlib.util.spec_from_file_location("check_patches", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def findings(lab, words, rules):
    """Runs the script on the lab's series and gives (exit code, text)."""
    add_only = {"sglang/srt/a.py": lab.patched["sglang/srt/a.py"], "sglang/srt/b.py": B1 + b"MORE = 1\n"}
    for old in lab.patches.glob("*.patch"):
        old.unlink()
    (lab.patches / "series").write_text("")
    lab.patched = dict(lab.pristine)
    lab.add_patch("0001-first.patch", add_only)
    lab.make_hashes()
    words()

    def run():
        code = rules.main(["--patches", str(lab.patches), "--pristine", str(lab.tree)])
        return code, words()

    assert run()[0] == 0
    return run


def test_our_series_keeps_all_rules_on_the_real_sglang(stock_tree):
    result = subprocess.run([sys.executable, SCRIPT, "--pristine", stock_tree], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_our_series_is_read_from_the_checkout():
    assert default_directory() == REPO / "patches"
    assert Series().revision >= 1


def test_an_unlisted_file_a_missing_file_and_a_double_entry_are_found(lab, findings):
    (lab.patches / "0002-stray.patch").write_text("")
    with open(lab.patches / "series", "a") as series:
        series.write("0001-first.patch\n0003-gone.patch\n")
    code, text = findings()
    assert code == 1
    assert "0002-stray.patch is neither listed" in text
    assert "lists 0001-first.patch twice" in text
    assert "lists 0003-gone.patch, which does not exist" in text


def test_a_bad_name_a_wrong_order_and_a_reused_number_are_found(lab, findings):
    for name in ("0003-c.patch", "0002-b.patch", "0002-d.patch", "Fix.patch"):
        lab.add_patch(name, {})
    code, text = findings()
    assert code == 1
    assert "Fix.patch is not named" in text and "not in the order" in text and "number 0002 is used twice" in text


@pytest.mark.parametrize("field", ["Description", "Why-not-a-hook", "Forwarded", "Remove-when"])
def test_a_missing_header_field_is_found(lab, findings, field):
    path = lab.patches / "0001-first.patch"
    path.write_text(path.read_text().replace(f"{field}:", "Other:"))
    code, text = findings()
    assert code == 1 and f"header field {field} is missing" in text


def test_a_removed_line_is_found_unless_the_header_says_why(lab, findings):
    lab.add_patch("0002-removes.patch", {"sglang/srt/b.py": b"VALUE = 2\n"})
    lab.make_hashes()
    code, text = findings()
    assert code == 1 and "0002-removes.patch: removes 2 lines" in text
    path = lab.patches / "0002-removes.patch"
    path.write_text(path.read_text().replace("Forwarded:", "Removes-lines: the value is wrong\nForwarded:"))
    assert findings()[0] == 0


def test_a_patch_over_the_budget_is_found_unless_the_header_says_why(lab, findings, rules):
    big = {f"sglang/srt/n{n}.py": b"x = 1\n" for n in range(rules.MAX_FILES)}
    big["sglang/srt/n.py"] = b"x = 1\n" * (rules.MAX_CHANGED_LINES + 1 - rules.MAX_FILES)
    lab.add_patch("0002-big.patch", big)
    lab.make_hashes()
    code, text = findings()
    assert code == 1 and "changes 61 lines, allowed are 60" in text and "touches 4 files, allowed are 3" in text
    path = lab.patches / "0002-big.patch"
    path.write_text(path.read_text().replace("Forwarded:", "Over-budget: one seam\nForwarded:"))
    assert findings()[0] == 0


def test_old_hashes_a_patch_that_does_not_apply_and_broken_python_are_found(lab, findings):
    lab.add_patch("0002-more.patch", {"sglang/srt/b.py": B1 + b"MORE = 1\nprint(\n"})
    code, text = findings()
    assert code == 1 and "HASHES.json is out of date" in text and "does not compile" in text
    (lab.tree / "sglang/srt/a.py").write_bytes(b"# moved\n" + A1)
    code, text = findings()
    assert code == 1 and "0001-first.patch does not apply: sglang/srt/a.py: line 3" in text


def test_the_name_of_this_project_in_an_added_line_is_found(lab, findings):
    lab.add_patch("0002-name.patch", {"sglang/srt/b.py": lab.patched["sglang/srt/b.py"] + b"# for TokenCake\n"})
    lab.make_hashes()
    code, text = findings()
    assert code == 1 and "names this project in sglang/srt/b.py" in text


def test_a_header_field_may_continue_on_lines_that_start_with_a_space():
    header = parse_header(HEADER.format(name="A thing"))
    assert header == {
        "Description": "A thing more words",
        "Why-not-a-hook": "none",
        "Forwarded": "no",
        "Remove-when": "never",
    }
