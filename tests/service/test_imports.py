"""What is off is not imported, and what is called pure can do nothing but compute."""

from __future__ import annotations

import ast
import json
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import requests
import size
from local_e2b import LocalE2B

from conftest import ROOT, Service, e2b_at, service_modules

PATHS = ("/health", "/ready", "/metrics", "/openapi.json", "/", "/images/none.png")
# Written by a worker when it ends: the files of all modules that it has imported.
DUMP = """
import atexit, json, os, sys
def dump():
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    with open(f"{os.environ['DUMP_DIR']}/{os.getpid()}.json", "w") as file:
        json.dump([file for file in files if file], file)
atexit.register(dump)
"""
# All that a module needs to compute with texts and bytes. `secrets` and `hmac` compare
# in constant time; what reads a clock, a file, a socket or the environment is not here.
PURE_LIBRARY = {
    "base64",
    "binascii",
    "collections",
    "dataclasses",
    "functools",
    "hmac",
    "html",
    "itertools",
    "json",
    "math",
    "re",
    "secrets",
    "typing",
}
ROOMS = [path for paths in size.OPTIONS.values() for path in paths]


def imported_by_a_worker(
    e2b: LocalE2B, folder: Path, settings: dict[str, str]
) -> set[str]:
    """The service's files that a worker has imported after it served each thing."""
    (folder / "sitecustomize.py").write_text(DUMP)
    dumps = folder / "dumps"
    dumps.mkdir()
    watched = {"PYTHONPATH": str(folder), "DUMP_DIR": str(dumps)}
    service = Service(e2b_at(e2b.url) | watched | settings)
    try:
        service.wait_until_ready()
        assert service.execute("1").status_code == 200
        for path in (
            "/health",
            "/ready",
            "/metrics",
            "/openapi.json",
            "/",
            "/images/x",
        ):
            requests.get(service.url + path, timeout=30)
        params = {"name": "execute_python", "arguments": {"code": "1"}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        assert requests.post(f"{service.url}/mcp", json=call, timeout=30).ok
        requests.post(f"{service.url}/v1/exec", json={}, timeout=30)
    finally:
        service.stop()
    found = set[str]()
    for dump in dumps.iterdir():
        for name in json.loads(dump.read_text()):
            path = Path(name)
            if path.is_relative_to(ROOT) and ".venv" not in path.parts:
                found.add(path.relative_to(ROOT).as_posix())
    return found


def in_room(names: set[str], start: str) -> set[str]:
    return {name for name in names if name.startswith(start)}


def test_a_process_with_default_settings_imports_only_what_it_runs(
    scripted_e2b: LocalE2B, tmp_path: Path
) -> None:
    imported = imported_by_a_worker(scripted_e2b, tmp_path, {})
    assert {"proxy.py", "sandboxes/sandbox.py", "texts/cell.py"} <= imported
    optional = {name for room in ROOMS for name in in_room(service_modules(), room)}
    never = set(size.CHILDREN)
    never |= {
        name for room in size.IN_SANDBOX for name in in_room(service_modules(), room)
    }
    assert optional
    assert imported & (optional | never) == set()
    assert imported == service_modules() - optional - never


@pytest.mark.parametrize(
    ("setting", "rooms"),
    [
        ("FILES_DIR", ["code_api/", "sandboxes/files.py"]),
        ("IMAGE_DIR", ["pictures/publishing.py"]),
        ("SESSION_IDLE_S", ["sandboxes/keeping.py"]),
        ("WARM_SANDBOXES", ["sandboxes/keeping.py"]),
        (
            "FILES_DIR and SESSION_IDLE_S",
            [
                "code_api/",
                "code_api/stateful.py",
                "sandboxes/files.py",
                "sandboxes/keeping.py",
            ],
        ),
    ],
)
def test_a_setting_brings_its_rooms_and_no_other(
    scripted_e2b: LocalE2B, tmp_path: Path, setting: str, rooms: list[str]
) -> None:
    settings = {
        "FILES_DIR": {"FILES_DIR": str(tmp_path)},
        "IMAGE_DIR": {"IMAGE_DIR": str(tmp_path), "IMAGE_URL": "/images"},
        "SESSION_IDLE_S": {"SESSION_IDLE_S": "60"},
        "WARM_SANDBOXES": {"WARM_SANDBOXES": "1"},
        "FILES_DIR and SESSION_IDLE_S": {
            "FILES_DIR": str(tmp_path),
            "SESSION_IDLE_S": "60",
        },
    }
    imported = imported_by_a_worker(scripted_e2b, tmp_path, settings[setting])
    for other in ROOMS:
        assert bool(in_room(imported, other)) == (other in rooms), other


def test_no_module_imports_one_that_imports_it() -> None:
    names = service_modules() - {"gunicorn.conf.py"}
    sources = {
        name.removesuffix(".py").replace("/", "."): (ROOT / name).read_text("utf-8")
        for name in names
    }
    imports = {name: imports_of(source) for name, source in sources.items()}
    assert "config" in imports["proxy"]
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


# --- purity ---------------------------------------------------------------------------


# They would reach outside without an import.
IMPURE_BUILTINS = {
    "open",
    "eval",
    "exec",
    "compile",
    "__import__",
    "input",
    "breakpoint",
}


def is_called_pure(source: str) -> bool:
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return "Pure." in docstring.split("\n\n")[0]


def imports_of(source: str) -> set[str]:
    """The modules that a source imports when it runs."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def pure_modules() -> dict[str, str]:
    """The source of each module that is called pure, by the name that imports it."""
    found = {}
    for name in service_modules():
        source = (ROOT / name).read_text("utf-8")
        if is_called_pure(source):
            found[name.removesuffix(".py").replace("/", ".")] = source
    return found


def names_in(source: str) -> set[str]:
    """The names that a source uses as they are, and those of attributes."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", sorted(pure_modules()))
def test_what_is_called_pure_imports_only_what_computes(name: str) -> None:
    modules = pure_modules()
    for imported in imports_of(modules[name]):
        is_ours = imported in modules
        assert is_ours or imported.partition(".")[0] in PURE_LIBRARY, imported


@pytest.mark.parametrize("name", sorted(pure_modules()))
def test_what_is_called_pure_calls_nothing_that_reaches_outside(name: str) -> None:
    # `compile` is re's, too.
    used = names_in(pure_modules()[name].replace("re.compile(", "("))
    assert not used & (IMPURE_BUILTINS | {"__builtins__", "__globals__"})


def test_what_reaches_outside_without_an_import_is_found() -> None:
    source = "def f():\n    return open('/etc/passwd') or __import__('os').system('id')"
    assert {"open", "__import__"} <= names_in(source)


def test_all_text_rules_are_pure() -> None:
    texts = in_room(service_modules(), "texts/") - {"texts/__init__.py"}
    names = {name.removesuffix(".py").replace("/", ".") for name in texts}
    assert texts
    assert names <= set(pure_modules())
    assert {"run", "formatter", "mcp_server"} <= set(pure_modules())


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ("import os.path, re", {"os.path", "re"}),
        ("from json import loads", {"json"}),
        ("def f():\n    import socket", {"socket"}),
        ("if TYPE_CHECKING:\n    import socket\nimport re", {"re"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, imports: set[str]) -> None:
    assert imports_of(source) == imports
