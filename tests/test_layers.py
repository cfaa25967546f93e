"""The house from outside: each package stands on a floor, and no two modules import each other.

``pytest -s -v tests/test_layers.py`` prints the import graph.
"""

import ast
from pathlib import Path

import pytest

import stab

ROOT = Path(stab.__file__).parent
PACKAGES = ("stabilizers", "engines", "tasks", "run", "reports", "checks", "cli")

# A module may import what stands on a lower floor, and its own package. The first prefix that matches counts.
FLOORS = {
    "registry": 0,
    "gva": 0,
    "recipe": 2,
    "arguments": 1,
    "files": 1,
    "stabilizers": 3,
    "engines": 3,
    "config": 4,
    "train": 4,
    "tasks.policies": 6,
    "tasks.control": 7,
    "tasks.language": 7,
    "tasks": 5,
    "run": 6,
    "reports": 7,
    "checks": 8,
    "comparison": 8,
    "cli": 9,
}


def sources():
    """Every module of the package, by dotted name without ``stab.``; the package itself is ''."""
    files = [*ROOT.glob("*.py"), *(f for p in PACKAGES for f in (ROOT / p).rglob("*.py"))]
    return {
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): f
        for f in files
    }


def imported(name, path):
    """The modules of stab that a file imports anywhere: in functions, and for type checking, too."""
    modules, known = set(), sources()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import only as `from stab...`"
            if node.module and node.module.partition(".")[0] == "stab":
                base = node.module.removeprefix("stab").lstrip(".")
                for alias in node.names:
                    full = f"{base}.{alias.name}".lstrip(".")
                    modules.add(full if full in known else base)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "stab":
                    modules.add(alias.name.removeprefix("stab").lstrip("."))
                assert alias.name not in known, (
                    f"{path}: `import {alias.name}` finds a file of the repository root"
                )
    return modules - {name}


def floor(name):
    parts = name.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next(FLOORS[prefix] for prefix in prefixes if prefix in FLOORS)


def package(name):
    """The longest prefix with a floor of its own."""
    parts = name.split(".")
    return next(p for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in FLOORS)


def graph():
    return {name: imported(name, path) for name, path in sources().items()}


def circles(edges):
    """The groups of modules that reach each other (strongly connected components of more than one)."""
    reach = {name: set(found) for name, found in edges.items()}
    changed = True
    while changed:
        changed = False
        for near in reach.values():
            more = set().union(*(reach.get(other, set()) for other in near)) - near
            near.update(more)
            changed = changed or bool(more)
    groups = {
        frozenset(b for b in reach if b in reach[a] and a in reach[b])
        for a in reach
        if a in reach[a]
    }
    return sorted(sorted(group) for group in groups)


@pytest.mark.parametrize("name", sorted(set(sources()) - {""}))
def test_a_module_imports_only_lower_floors_and_its_own_package(name):
    wrong = [
        other
        for other in imported(name, sources()[name])
        if other and floor(other) >= floor(name) and package(other) != package(name)
    ]
    assert wrong == [], f"{name} stands on floor {floor(name)}"


def test_no_two_modules_form_a_circle():
    edges = graph()
    for name, found in sorted(edges.items()):
        print(f"{name or 'stab'} -> {', '.join(sorted(found)) or '-'}")
    assert circles({name: found for name, found in edges.items() if name}) == []


def test_these_tests_see_imports_and_circles():
    assert {"recipe", "registry", "stabilizers.base"} <= imported("train", sources()["train"])
    assert len(sources()) > 80
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_the_root_stays_small():
    assert len(list(ROOT.glob("*.py"))) <= 9, "eight modules beside __init__.py"


def test_no_public_name_is_a_submodules():
    assert not set(stab.__all__) & set(sources())
    for name in stab.__all__:
        assert getattr(stab, name) is not None
