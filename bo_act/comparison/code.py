"""Hash of a search's code: saved runs count only for the same code."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_FIRST = "bo_act.comparison.job"

# Imported modules without influence on proposals: drawing functions, making features and sources
# (which come with the benchmarks), and loading users' files.
_BESIDE = frozenset(
    {
        "bo_act.activations.formulas",
        "bo_act.activations.plots",
        "bo_act.features.compute",
        "bo_act.html",
        "bo_act.study.sampling.warm_start",
        "bo_act.user_code.files",
    }
)


def code_digest(package: Path = _PACKAGE) -> str:
    """Identify the code that decides a search.

    That is the modules that a replayed search imports, itself or by way of others, without
    comments, docstrings and layout.

    Args:
        package: folder of the package ``bo_act``.
    """
    sources: dict[str, str] = {}
    waiting = [_FIRST]
    while waiting:
        name = waiting.pop()
        if name in sources or name in _BESIDE or (file := _file(package, name)) is None:
            continue
        sources[name], imports = _bare(file.read_bytes())
        waiting += _imported(imports, package)
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(f"{name}\0{source}\0".encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=256)
def _bare(source: bytes) -> tuple[str, tuple[ast.Import | ast.ImportFrom, ...]]:
    """Return a module's bare code, and its imports."""
    tree = _Bare().visit(ast.parse(source))
    imports = [one for one in ast.walk(tree) if isinstance(one, ast.Import | ast.ImportFrom)]
    return ast.unparse(tree), tuple(imports)


class _Bare(ast.NodeTransformer):
    """Removes docstrings and annotations."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def _imported(imports: tuple[ast.Import | ast.ImportFrom, ...], package: Path) -> Iterator[str]:
    for node in imports:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.module:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if _file(package, module) else node.module


def _file(package: Path, name: str) -> Path | None:
    """Return the file of a module of the package, else None."""
    first, *rest = name.split(".")
    if first != package.name or not rest:
        return None
    path = package.joinpath(*rest)
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)
