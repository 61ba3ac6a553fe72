"""The diff reader and applier: exact where it accepts, loud where it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patch_lab import A1, A2, unified

from tokencake_sglang.patching.errors import PatchError
from tokencake_sglang.patching.unidiff import ADDED, apply_forward, apply_reverse, parse_diff

PATH = "sglang/x.py"
line = st.sampled_from(
    [b"a", b"b", b"", b" ", b"-", b"+++ x", b"--- y", b"@@ -1 +1 @@", b"diff --git", b"c\r", b"\x0c"]
)
content = st.builds(
    lambda lines, end: b"\n".join(lines) + end, st.lists(line, max_size=40), st.sampled_from([b"", b"\n"])
)


@st.composite
def edited(draw):
    """A file and a version of it with a few lines inserted, removed or replaced."""
    before = draw(content)
    lines = before.split(b"\n")
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(lines)))
        stop = draw(st.integers(start, min(start + 3, len(lines))))
        lines[start:stop] = draw(st.lists(line, max_size=3))
    return before, b"\n".join(lines)


def one(diff: bytes):
    (file,) = parse_diff(b"Description: x\n\n" + diff, "p.patch")[1]
    return file


@given(edited())
def test_a_diff_applies_to_the_edited_file_and_reverses_to_the_original(pair):
    before, after = pair
    if before != after:
        patch = one(unified(PATH, before, after))
        assert apply_forward(patch, before) == after
        assert apply_reverse(patch, after) == before


@given(content)
def test_a_new_file_applies_from_nothing_and_reverses_to_nothing(after):
    patch = one(unified(PATH, None, after))
    assert apply_forward(patch, None) == after
    assert apply_reverse(patch, after) is None


@given(edited(), st.integers(0, 60), line)
def test_no_line_that_the_diff_names_may_differ(pair, place, other):
    before, after = pair
    if before == after:
        return
    patch = one(unified(PATH, before, after))
    touched = set()
    for hunk in patch.hunks:
        old = [text for kind, text in hunk.lines if kind != ADDED]
        touched |= set(range(hunk.old_start - 1, hunk.old_start - 1 + len(old)))
    lines = before.split(b"\n")
    if place in touched and place < len(lines) and lines[place] != other:
        lines[place] = other
        with pytest.raises(PatchError):
            apply_forward(patch, b"\n".join(lines))


def test_a_file_that_moved_by_one_line_is_refused_and_the_line_is_named():
    patch = one(unified("sglang/srt/a.py", A1, A2))
    with pytest.raises(PatchError, match=r"a\.py: line 3: expected b'# line 3\\n', found b'# line 2\\n'"):
        apply_forward(patch, b"new first line\n" + A1)


def test_applying_twice_and_reversing_twice_are_refused():
    patch, new = one(unified("sglang/srt/a.py", A1, A2)), one(unified(PATH, None, b"x\n"))
    for attempt in (
        lambda: apply_forward(patch, A2),
        lambda: apply_reverse(patch, A1),
        lambda: apply_forward(new, b"x\n"),
        lambda: apply_reverse(new, None),
        lambda: apply_reverse(new, b"x\nmore\n"),
        lambda: apply_forward(patch, None),
    ):
        with pytest.raises(PatchError):
            attempt()


GOOD = b"--- a/sglang/x.py\n+++ b/sglang/x.py\n@@ -1,2 +1,3 @@\n one\n+two\n three\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"-1,2", b"-1,3"),
        (b"+1,3", b"+1,2"),
        (b"a/sglang", b"a/other"),
        (b"b/sglang", b"b/../sglang"),
        (b"b/sglang/x", b"b/sglang/y"),
        (b" three\n", b"three\n"),
        (b" three\n", b" three"),
        (b" three\n", b" three\n-- \n2.43\n"),
        (b"+++ b/sglang/x.py", b"+++ /dev/null"),
        (b"--- a/sglang/x.py", b"--- /dev/null"),
        (b"--- a", b"diff --git a/sglang/x.py b/sglang/y.py\n--- a"),
        (b"--- a", b"diff --git a/sglang/x.py b/sglang/x.py\nold mode 100644\nnew mode 100755\n--- a"),
        (b"@@ -1,2 +1,3 @@\n one\n+two\n three\n", b""),
    ],
)
def test_a_damaged_or_unsupported_patch_is_refused(old, new):
    assert apply_forward(one(GOOD), b"one\nthree\n") == b"one\ntwo\nthree\n"
    damaged = GOOD.replace(old, new)
    assert damaged != GOOD
    with pytest.raises(PatchError, match=r"p\.patch"):
        parse_diff(damaged, "p.patch")


def test_a_wrong_line_number_of_the_new_side_is_refused():
    with pytest.raises(PatchError, match="new file"):
        apply_forward(one(GOOD.replace(b"+1,3", b"+2,3")), b"one\nthree\n")
