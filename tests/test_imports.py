"""No file of vitslim imports, by whatever way round, a file that imports it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import vitslim

ROOT = Path(vitslim.__file__).parent
Graph = dict[str, set[str]]


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports below a node, those inside functions too; not those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from imports(other)
        else:
            yield from imports(child)


def graph_of(root: Path) -> Graph:
    """Which file imports which; a name taken from a package is its ``__init__`` unless it is a file itself."""
    files = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }
    graph: Graph = {}
    for name, path in files.items():
        wanted: set[str] = set()
        for found in imports(ast.parse(path.read_text("utf-8"))):
            if isinstance(found, ast.Import):
                wanted |= {alias.name for alias in found.names}
            elif found.module is not None and found.level == 0:
                whole = {f"{found.module}.{alias.name}" for alias in found.names}
                wanted |= {one if one in files else found.module for one in whole}
        graph[name] = (wanted & set(files)) - {name}
    return graph


def reached(graph: Graph, start: str) -> set[str]:
    """Everything that a file imports, directly or by way of others."""
    found: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += graph[name]
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Files that import one another, in groups."""
    reach = {name: reached(graph, name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def test_no_file_is_in_an_import_circle() -> None:
    assert circles(graph_of(ROOT)) == []


def test_circles_through_functions_and_packages_are_found(tmp_path: Path) -> None:
    root = tmp_path / "toy"
    root.mkdir()
    (root / "__init__.py").write_text("from toy.first import one\n")
    (root / "first.py").write_text("def one():\n    from toy import second\n")
    (root / "second.py").write_text("from toy.first import one\n")
    (root / "third.py").write_text("import toy.first\nif TYPE_CHECKING:\n    from toy.fourth import four\n")
    (root / "fourth.py").write_text("import toy.third\n")
    assert circles(graph_of(root)) == [["toy.first", "toy.second"]]
