"""Which part may import what, how large a file or a function may be, and what an import may load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python/tokencake_sglang"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

HEAVY = {"torch", "sglang", "sgl_kernel", "triton", "transformers"}
HEAVY_ROOMS = {"engine", "platforms", "emulator"}
ONE_FILE_ROOMS = {"frontend": "sglang_backend.py", "server": "gateway.py"}
BUILT_ON_IT = {"agents.py", "calls.py", "endpoint.py"}  # of frontend/: they load the one file, and sglang with it
STARTERS = {"launch_server.py", "serving.py", "doctor.py"}  # inside functions only
SUBCLASSES = {"offline.py"}  # the offline Engine is a subclass of SGLang's; nothing else imports it
IMPURE = {
    "asyncio", "datetime", "io", "locale", "logging", "multiprocessing", "os", "pathlib", "platform", "queue", "random",
    "secrets", "select", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid"}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 80
LONGER_ON_PURPOSE: dict[str, str] = {}  # "file" or "file:function" -> why


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imported modules, wherever in the file the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the whole path"
            yield node.module


def imported_on_load(tree: ast.Module) -> set[str]:
    """Roots of the modules that importing the file imports: not those inside functions or under TYPE_CHECKING."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(name.split(".")[0] for name in imported(node))
        waiting.extend(ast.iter_child_nodes(node))
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def in_room(room: str) -> list[Path]:
    return [path for path in FILES if room_of(path) == room]


def test_there_is_something_to_check():
    rooms = {room_of(path) for path in FILES}
    assert {"core", "engine", "server", "frontend", "platforms", "patching"} <= rooms


@pytest.mark.parametrize("room", ["core", "patching"])
def test_core_and_patching_import_the_standard_library_and_core_only(room):
    own = {f"tokencake_sglang.{name}" for name in {"core", "version", room}}
    for path in in_room(room):
        for name in imported(tree_of(path)):
            is_own = any(name == mine or name.startswith(mine + ".") for mine in own)
            assert is_own or name.split(".")[0] in sys.stdlib_module_names, f"{path} imports {name}"


def test_core_imports_nothing_that_has_a_clock_chance_or_an_outside():
    for path in in_room("core"):
        for name in imported(tree_of(path)):
            assert name.split(".")[0] not in IMPURE, f"{path} imports {name}"
        assert "print" not in {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}, path


def test_core_does_not_know_the_other_rooms():
    for path in in_room("core"):
        ours = [name for name in imported(tree_of(path)) if name.startswith("tokencake_sglang")]
        assert all(name.startswith("tokencake_sglang.core") for name in ours), path


def test_torch_and_sglang_stay_in_their_rooms():
    for path in FILES:
        room, heavy = room_of(path), {name.split(".")[0] for name in imported(tree_of(path))} & HEAVY
        if not heavy or room in HEAVY_ROOMS or path.name == ONE_FILE_ROOMS.get(room):
            continue
        if room == "" and path.name in SUBCLASSES:
            continue
        assert room == "" and path.name in STARTERS, f"{path} imports {sorted(heavy)}"
        assert not imported_on_load(tree_of(path)) & HEAVY, f"{path} imports {sorted(heavy)} when it is loaded"


@pytest.mark.parametrize("room", ["frontend", "server"])
def test_one_file_of_a_room_that_meets_sglang_imports_it(room):
    with_sglang = [path.name for path in in_room(room) if {n.split(".")[0] for n in imported(tree_of(path))} & HEAVY]
    assert with_sglang == [ONE_FILE_ROOMS[room]]


def test_the_engine_does_not_import_the_frontend():
    for path in in_room("engine") + in_room("platforms"):
        assert not any(name.startswith("tokencake_sglang.frontend") for name in imported(tree_of(path))), path


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_and_its_functions_are_short_enough_to_read(path):
    name = str(path.relative_to(PACKAGE))
    too_long = [name] if len(path.read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES else []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
                too_long.append(f"{name}:{node.name}")
    assert [what for what in too_long if what not in LONGER_ON_PURPOSE] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_with_code_says_what_it_is_for(path):
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree)


def test_every_folder_with_code_is_shipped():
    folders = {".".join(path.relative_to(PACKAGE.parent).parent.parts) for path in FILES}
    assert folders <= set(find_packages(str(PACKAGE.parent)))


def test_nothing_imports_the_offline_engine():
    for path in FILES:
        assert "tokencake_sglang.offline" not in set(imported(tree_of(path))), path


def pure_modules() -> list[str]:
    """Modules that load neither torch nor sglang, by the rules above."""
    rooms = {"core", "patching", "frontend", "server", ""}
    names = ["tokencake_sglang"]
    for path in FILES:
        builds_on_sglang = room_of(path) == "frontend" and path.name in BUILT_ON_IT
        is_meeting_place = builds_on_sglang or path.name == ONE_FILE_ROOMS.get(room_of(path)) or path.name in SUBCLASSES
        if room_of(path) in rooms and not is_meeting_place and path.name != "__main__.py":
            dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            names.append(dotted.removesuffix(".__init__"))
    return names


EMULATOR_TOOLS = (
    "cli", "request", "cells", "compare", "report", "table", "plots", "catalogue", "profile", "fit", "program", "spec",
    "workloads", "configurations", "bounds", "remaining", "clock", "device", "clients", "result",
    "zygote")


def test_importing_the_pure_parts_loads_neither_torch_nor_sglang():
    modules = pure_modules() + [f"tokencake_sglang.emulator.{name}" for name in EMULATOR_TOOLS]
    assert {"tokencake_sglang.core.controller", "tokencake_sglang.frontend.tool"} <= set(modules)
    code = "import sys\n" + "\n".join(f"import {name}" for name in modules)
    code += "\nprint(sorted({'torch', 'sglang', 'matplotlib'} & set(sys.modules)))"
    env = dict(os.environ, PYTHONPATH=str(PACKAGE.parent))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
