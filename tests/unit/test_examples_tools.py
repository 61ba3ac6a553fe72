"""The tools of the examples do real work on this machine, inside their limits."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from coding.tasks import TASKS  # noqa: E402
from coding.tools import Workspace, WorkspaceError, run_limited, workspace  # noqa: E402
from common.delay import delay_for  # noqa: E402
from deep_research.index import SearchIndex, SearchIndexError, build  # noqa: E402
from deep_research.questions import QUESTIONS  # noqa: E402

FUNCTIONS = {f.name: f for task in TASKS for f in task.functions}.values()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    return SearchIndex.open(tmp_path_factory.mktemp("index"))


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_soon(pid: int) -> bool:
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_the_index_finds_the_documentation_that_is_asked_for(index: SearchIndex):
    titles = [hit.title for hit in index.search("communicate with a subprocess", limit=5)]
    assert any(title.startswith("subprocess") or "Subprocess" in title for title in titles), titles


def test_equal_searches_give_equal_answers_in_equal_order(index: SearchIndex):
    assert index.search("thread lock queue") == index.search("thread lock queue") != []


def test_query_syntax_of_the_engine_in_a_query_is_only_words(index: SearchIndex):
    for query in ('"', "NEAR(", "title:x OR", "a' OR 1=1 --", "*", "", "(((", "json AND"):
        assert isinstance(index.search(query), list)
    assert index.search("") == []


def test_every_word_of_every_question_finds_a_document(index: SearchIndex):
    missing = [word for question in QUESTIONS for word in question.words if not index.search(word)]
    assert missing == []


def test_an_index_without_text_is_refused_and_leaves_no_file(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SearchIndexError, match="no documented Python sources"):
        build(tmp_path / "out" / "index.sqlite", tmp_path / "empty")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("path", ["../out.py", "/etc/passwd", "a/../../out.py", ".", ""])
def test_files_outside_the_working_folder_are_refused(tmp_path: Path, path: str):
    space = Workspace(tmp_path / "work")
    space.root.mkdir()
    with pytest.raises(WorkspaceError, match="working folder"):
        space.write(path, "x")
    with pytest.raises(WorkspaceError, match="working folder"):
        space.read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["work"]


def test_a_link_does_not_lead_out_of_the_working_folder(tmp_path: Path):
    space = Workspace(tmp_path / "work")
    space.root.mkdir()
    (space.root / "link").symlink_to(tmp_path)
    with pytest.raises(WorkspaceError):
        space.write("link/out.py", "x")
    assert not (tmp_path / "out.py").exists()


def test_the_workspace_is_removed_afterwards():
    with workspace() as space:
        space.write("sub/a.py", "x = 1\n")
        assert space.read("sub/a.py") == "x = 1\n"
        assert space.check("sub/a.py") == "sub/a.py: ok"
        root = space.root
    assert not root.exists()


def test_check_reports_what_the_compiler_says():
    with workspace() as space:
        space.write("a.py", "def f(:\n")
        assert "SyntaxError" in space.check("a.py")


def test_pytest_really_decides_whether_the_code_is_right():
    function = next(f for f in FUNCTIONS if f.name == "clamp")
    with workspace() as space:
        space.write("test_clamp.py", function.test_source())
        space.write("clamp.py", function.source("return max(low, max(value, high))"))
        passed, output = space.pytest()
        assert not passed and "test_clamp.py" in output
        space.write("clamp.py", function.source("return max(low, min(value, high))"))
        passed, output = space.pytest()
        assert passed and "1 passed" in output


def test_equal_test_runs_print_equal_text():
    function = next(f for f in FUNCTIONS if f.name == "mean")
    outputs = []
    for _ in range(2):
        with workspace() as space:
            space.write("test_mean.py", function.test_source())
            space.write("mean.py", function.source("return sum(values) * max(1, len(values))"))
            outputs.append(space.pytest()[1])
    assert outputs[0] == outputs[1]


def test_tests_that_hang_are_stopped_with_all_their_children():
    hang = ("import subprocess, sys, time\ndef test_hang():\n"
            "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "    open('pid', 'w').write(str(child.pid))\n    time.sleep(600)\n")
    with workspace() as space:
        space.write("test_hang.py", hang)
        passed, output = space.pytest(limit_s=5.0)
        assert not passed and "stopped after 5 s" in output
        assert gone_soon(int(space.read("pid")))


def test_a_child_left_behind_by_a_finished_command_is_ended(tmp_path: Path):
    code = ("import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
            " stdout=subprocess.DEVNULL).pid)")
    status, output = run_limited([sys.executable, "-c", code], tmp_path, 30.0)
    assert status == 0
    assert gone_soon(int(output))


def test_every_function_has_exactly_one_right_body_and_every_body_compiles():
    for function in FUNCTIONS:
        right = []
        for body in function.bodies():
            names: dict = {}
            exec(compile(function.source(body), function.name, "exec"), names)
            if all(_holds(test, names) for test in function.tests):
                right.append(body)
        assert len(right) == 1, (function.name, right)


def _holds(test: str, names: dict) -> bool:
    try:
        return bool(eval(test, names))
    except Exception:
        return False


def test_the_stated_pause_is_about_its_mean_and_the_same_for_the_same_arguments():
    delays = [delay_for(2.0, f"query {n}") for n in range(500)]
    assert all(1.0 <= d <= 3.0 for d in delays)
    assert 1.8 < sum(delays) / len(delays) < 2.2
    assert delay_for(2.0, "same") == delay_for(2.0, "same")
    assert delay_for(0.0, os.devnull) == 0.0
