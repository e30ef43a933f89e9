"""Loading users' Python files: models, objectives, callbacks, data.

The code that runs is exactly the hashed code: a file is read once, with its imported neighbours,
and pickled as a whole for other processes. Each file is a module with a unique name, so it cannot
hide other modules; and it stays in ``sys.modules``, where dataclasses, type hints and pickle look
up classes.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from bo_act.errors import BoActError, nearest
from bo_act.io import digest, expanded, one_line, reason
from bo_act.user_code.failures import USERS, is_machines
from bo_act.user_code.failures import one_line as failure_line

_PREFIX = "_bo_act_file_"


@dataclass(frozen=True)
class UserFile:
    """The content of a Python file, and of the neighbouring files that it imports.

    Attributes:
        path: of the file, absolute.
        source: its bytes.
        neighbours: bytes by path from its folder (``helpers.py``, ``parts/blocks.py``), of
            imported modules and packages beside it, direct or indirect. For these files only, they
            come before installed packages of the same name.
    """

    path: Path
    source: bytes = field(repr=False)
    neighbours: Mapping[str, bytes] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def read(cls, path: Path) -> UserFile:
        """Read a file and its neighbours.

        Raises:
            OSError: the file cannot be read.
        """
        path = expanded(path).resolve()
        source = path.read_bytes()
        return cls(path, source, _neighbours(path, source))

    @property
    def content(self) -> bytes:
        """The file's bytes, with those of its neighbours, if any."""
        others = sorted(self.neighbours.items())
        return b"\0".join([self.source, *(p for name, b in others for p in (name.encode(), b))])

    def load(self) -> ModuleType:
        """Run the file, once per process for the same content.

        Raises:
            Exception: from the file, and SystemExit if it exits.
        """
        name = _PREFIX + digest(str(self.path).encode() + b"\0" + self.content)[:16]
        with _lock:
            if name in sys.modules:
                return sys.modules[name]
            _finder.files[name] = self
            try:
                return importlib.import_module(name)
            except BaseException:
                for loaded in [m for m in sys.modules if m.partition(".")[0] == name]:
                    del sys.modules[loaded]
                del _finder.files[name]
                raise


def load_function(
    name: str, *, key: str, expected: str, error: type[BoActError]
) -> tuple[UserFile, Callable[..., Any]]:
    """Load the function that ``FILE.py:FUNCTION`` names.

    Args:
        name: from a study file; relative paths start at the working folder.
        key: of the study file, for errors.
        expected: the function's form, for errors.
        error: to raise.

    Raises:
        BoActError: of the type ``error``: there is no such file or function, or the file cannot
            be imported.
    """
    path, colon, function = name.rpartition(":")
    if not (colon and path.endswith(".py") and function):
        raise error(f"{key}: expected 'FILE.py:FUNCTION', got {name!r}")
    file = read_file(Path(path), key=key, error=error)
    module = load_file(file, key=key, error=error)
    loaded = getattr(module, function, None)
    if not callable(loaded):
        known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        hint = nearest(function, known) if loaded is None else f" but a {type(loaded).__name__}"
        raise error(f"{key}: {file.path}: expected {expected}, got no function {function!r}{hint}")
    return file, loaded


def takes_any(parameters: Iterable[inspect.Parameter]) -> bool:
    """Tell whether a function takes any keyword argument."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def is_required(parameter: inspect.Parameter) -> bool:
    """Tell whether a call must give an argument."""
    several = (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and parameter.kind not in several


def call_with(
    function: Callable[..., Any],
    offered: Mapping[str, Any],
    *,
    what: str,
    error: type[BoActError],
) -> Any:
    """Call a user's function with the arguments of its signature, by name.

    Args:
        function: of a user's.
        offered: available arguments.
        what: name of the function, for errors.
        error: to raise.

    Raises:
        BoActError: of the type ``error``: it needs other arguments, or fails.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of compiled code
        parameters = [inspect.Parameter("all", inspect.Parameter.VAR_KEYWORD)]
    names = [parameter.name for parameter in parameters]
    every = takes_any(parameters)
    given = {name: value for name, value in offered.items() if every or name in names}
    for parameter in filter(is_required, parameters):
        if parameter.name not in given or parameter.kind is parameter.POSITIONAL_ONLY:
            raise error(
                f"{what}: expected a function of some of {', '.join(offered)}, by name, got one "
                f"that needs {parameter.name!r}{nearest(parameter.name, offered)}"
            )
    try:
        return function(**given)
    except BoActError:
        raise
    except USERS as failure:
        if is_machines(failure):
            raise
        raise error(f"{what} fails: {failure_line(failure)}") from failure


def read_file(path: Path, *, key: str, error: type[BoActError]) -> UserFile:
    """Read a user's file; see ``UserFile.read``.

    Raises:
        BoActError: of the type ``error``: it cannot be read.
    """
    try:
        return UserFile.read(path)
    except (OSError, ValueError, RuntimeError) as problem:  # a null byte, or no home folder
        why = reason(problem) if isinstance(problem, OSError) else one_line(problem)
        raise error(f"{key}: {str(path)!r} cannot be read (from {Path.cwd()}): {why}") from problem


def load_file(
    file: UserFile, *, key: str, error: type[BoActError], expected: str = ""
) -> ModuleType:
    """Run a user's file; see ``UserFile.load``.

    Args:
        file: to run.
        key: of the study file, for errors.
        error: to raise.
        expected: definitions in the file, for errors, or ``""``.

    Raises:
        BoActError: of the type ``error``: it cannot be imported; the message names file and line.
    """
    try:
        return file.load()
    except (Exception, SystemExit) as problem:
        said = re.sub(rf"{_PREFIX}[0-9a-f]+\.", "", one_line(problem))
        said = re.sub(rf"{_PREFIX}[0-9a-f]+", file.path.stem, said)
        hint = f"; expected a Python file that defines {expected}" if expected else ""
        raise error(
            f"{key}: {file.path} cannot be imported: {said}{line_of(problem, file.path)}{hint}"
        ) from problem


def line_of(error: BaseException, path: Path) -> str:
    """Return `` (FILE, line N)``: the innermost line of an error in a user's folder.

    ``""`` if there is none.
    """
    if isinstance(error, SyntaxError):
        return ""  # its text has the line
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path.parent in Path(frame.filename).parents]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


# --- modules ------------------------------------------------------------------------------------

_lock = threading.RLock()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds user files and their neighbours by their unique names."""

    def __init__(self) -> None:
        self.files: dict[str, UserFile] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        file = self.files.get(root)
        if file is None:
            return None
        if not rest:
            location, source, holds_others = file.path, file.source, True
        else:
            inner = rest.replace(".", "/")
            name = next((n for n in (f"{inner}/__init__.py", f"{inner}.py")
                         if n in file.neighbours), None)  # fmt: skip
            inside = any(neighbour.startswith(f"{inner}/") for neighbour in file.neighbours)
            if name is None and not inside:
                return None
            location = file.path.parent / (name or f"{inner}/__init__.py")
            source = file.neighbours[name] if name else b""  # a folder without __init__.py
            holds_others = inside
        # A package without folders, so that no other finder searches in it.
        spec = importlib.machinery.ModuleSpec(
            fullname, _Source(root, location, source), origin=str(location), is_package=holds_others
        )
        spec.has_location = True
        return spec


_finder = _Finder()
sys.meta_path.append(_finder)


class _Source(importlib.abc.ExecutionLoader):
    """Runs these bytes without writing bytecode beside the file."""

    def __init__(self, root: str, path: Path, source: bytes) -> None:
        self.root, self.path, self.source = root, path, source

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002
        return str(self.path)

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return importlib.util.decode_source(self.source)

    def get_code(self, fullname: str) -> Any:  # noqa: ARG002
        # From bytes, so that encoding errors have a place.
        return compile(self.source, str(self.path), "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        file = _finder.files[self.root]
        if file.neighbours:
            importing = _importing(self.root, {name.split("/")[0] for name in file.neighbours})
            vars(module)["__builtins__"] = vars(builtins) | {"__import__": importing}
        super().exec_module(module)


def _importing(root: str, beside: set[str]) -> Callable[..., Any]:
    """Return an ``__import__`` that searches the neighbours first."""
    names = {name.removesuffix(".py") for name in beside}

    def importing(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        first = name.partition(".")[0]
        if level or first not in names:
            return builtins.__import__(name, globals, locals, fromlist, level)
        if fromlist:
            return builtins.__import__(f"{root}.{name}", globals, locals, fromlist, 0)
        importlib.import_module(f"{root}.{name}")
        return sys.modules[f"{root}.{first}"]

    return importing


def _neighbours(path: Path, source: bytes) -> dict[str, bytes]:
    """Return the neighbouring files that a file imports, direct or indirect."""
    folder = path.parent
    if folder.name in ("site-packages", "dist-packages"):
        return {}
    contents: dict[str, bytes] = {}
    waiting = [source]
    while waiting:
        for name in sorted(_imported(waiting.pop())):
            for file in _files_of(folder, name):
                key = file.relative_to(folder).as_posix()
                if key not in contents:
                    contents[key] = file.read_bytes()
                    waiting.append(contents[key])
    return contents


def _files_of(folder: Path, name: str) -> list[Path]:
    if name == "bo_act":
        return []
    package, module = folder / name, folder / f"{name}.py"
    if module.is_file() and not (package / "__init__.py").is_file():
        return [module]
    if not any(package.glob("*.py")):  # a folder of data, which may be large
        return []
    if not (package / "__init__.py").is_file() and _is_installed(name):
        return []  # as in Python, other modules come before a folder without code
    inside = (file.relative_to(package) for file in sorted(package.rglob("*.py")))
    return [package / file for file in inside if not any(part[0] == "." for part in file.parts)]


def _is_installed(name: str) -> bool:
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        return spec is not None and spec.origin is not None
    return False


def _imported(source: bytes) -> Iterator[str]:
    """Yield the first parts of all imported names in a source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # running it warns again
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # running it raises the error
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
