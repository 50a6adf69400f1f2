"""The house keeps its shape: dependencies go one way, and every module is on the map of its folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("shm", "workers", "engine", "tools", "perf")
MAY_IMPORT = {
    "shm": {"shm"},
    "workers": {"workers", "shm"},
    "engine": {"engine", "shm", "workers.spec", "workers.points", "workers.plugins"},
    "tools": {"tools", "engine", "workers", "shm", "perf"},
    "perf": {"perf", "tools", "engine", "workers", "shm"},
}
FOLDERS = (*PACKAGES, "workers/decoders", "workers/sources", "workers/spec", "workers/venues")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md")]
    + [path for top in (*PACKAGES, "tests", "systemd", "deploy") for path in (ROOT / top).rglob("*.md")]
)
SHM_LIBRARIES = {"numpy", "posix_ipc"}


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a Python or Cython file imports anywhere in it."""
    text = path.read_text()
    if path.suffix in {".pyx", ".pxi", ".pxd"}:
        found = re.findall(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", text, re.MULTILINE)
        return {first or second for first, second in found}
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def sources(package: str) -> list[Path]:
    """Modules of a package, native ones included."""
    folder = ROOT / package
    return sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".pyx", ".pxi", ".pxd"})


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in sources(package):
        for name in imports_of(path):
            top = name.split(".")[0]
            if top not in PACKAGES:
                continue
            allowed = any(name == prefix or name.startswith(f"{prefix}.") for prefix in MAY_IMPORT[package])
            spec_itself = name == "workers" and "workers.spec" in imports_of(path)
            assert allowed or spec_itself, f"{path.relative_to(ROOT)} imports {name}"


def test_a_consumer_needs_numpy_and_posix_ipc_alone() -> None:
    import sys

    for path in sources("shm"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        foreign = tops - {"shm", "cpython", "libc", "cython"} - SHM_LIBRARIES - set(sys.stdlib_module_names)
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("package", FOLDERS)
def test_readme_names_every_module_and_no_missing_one(package: str) -> None:
    folder = ROOT / package
    readme = (folder / "README.md").read_text()
    modules = {
        path.name
        for path in folder.iterdir()
        if path.suffix in {".py", ".pyx", ".pxi", ".pxd", ".h"} and path.name != "__init__.py" and path.is_file()
    }
    missing = sorted(name for name in modules if name not in readme)
    assert not missing, f"{package}/README.md leaves out {missing}"
    named = set(re.findall(r"`([\w/]+\.(?:py|pyx|pxi|pxd|h))`", readme))
    gone = sorted(name for name in named if not (folder / name).exists() and not (ROOT / name).exists())
    assert not gone, f"{package}/README.md names {gone}, which do not exist"


def anchor(heading: str) -> str:
    """What a heading can be linked by: as the hosts of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target, _, place in re.findall(r"\]\(([^)#:\s]*)(#([^)\s]+))?\)", document.read_text()):
        found = document.parent / target if target else document
        assert found.exists(), f"{document.relative_to(ROOT)} links to {target}, which is not there"
        if place:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), f"{document.relative_to(ROOT)} links to {target}#{place}"


@pytest.mark.parametrize("package", FOLDERS)
def test_readme_leads_to_the_documents_beside_it(package: str) -> None:
    folder = ROOT / package
    readme = (folder / "README.md").read_text()
    for document in folder.glob("*.md"):
        if document.name == "README.md":
            continue
        assert f"({document.name})" in readme, f"{package}/README.md leaves out {document.name}"
        named = set(re.findall(r"`([\w/]+\.(?:py|pyx|pxi|pxd|h))`", document.read_text()))
        homes = (ROOT, ROOT / "tests/plugin_example/src", folder, *(path for path in folder.iterdir() if path.is_dir()))
        gone = sorted(name for name in named if not any((home / name).exists() for home in homes))
        assert not gone, f"{package}/{document.name} names {gone}, which do not exist"


def test_architecture_names_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for package in (*PACKAGES, "systemd", "deploy", "tests"):
        assert f"{package}/" in text, package
