"""The methods of a comparison, by name: built-in, from a spec, or your own samplers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from optuna.samplers import BaseSampler

from bo_act.comparison.own_sampler import EXPECTED, OwnSampler
from bo_act.errors import BenchmarkError, nearest
from bo_act.search.method import METHODS, MethodSpec

Method = str | MethodSpec | Callable[..., BaseSampler]
"""A name in ``METHODS``, ``"FILE.py:FUNCTION"``, a description, or what makes a sampler."""


def read_methods(
    methods: Sequence[str | tuple[str, Method]] | Mapping[str, Method],
) -> dict[str, MethodSpec | OwnSampler]:
    """Return methods by their names in tables and figures.

    A function of a file has its own name, prefixed by the file's if that is taken.

    Args:
        methods: by name, or a sequence; see ``compare``.

    Raises:
        BenchmarkError: a method is unknown, or two have the same name.
    """
    given = list(methods.items()) if isinstance(methods, Mapping) else list(methods)
    if not given:
        raise BenchmarkError(f"expected at least one method of: {', '.join(METHODS)}")
    parsed = [
        _read(entry) if isinstance(entry, str) else (entry[0], _method(*entry)) for entry in given
    ]
    names = Counter(_short(method) if name is None else name for name, method in parsed)
    named: dict[str, MethodSpec | OwnSampler] = {}
    for given_name, method in parsed:
        name = _short(method) if given_name is None else given_name
        if given_name is None and (names[name] > 1 or name in METHODS):
            name = _long(method)
        _check(name, method)
        if name in named:
            raise BenchmarkError(
                f"two methods are named {name!r}; rename one: NAME=FILE.py:FUNCTION, "
                "or from Python {'NAME': method}"
            )
        named[name] = method
    return named


def _read(text: str) -> tuple[str | None, MethodSpec | OwnSampler]:
    """Read ``NAME``, ``FILE.py:FUNCTION`` or ``NAME=FILE.py:FUNCTION``."""
    if text in METHODS:
        return text, METHODS[text]
    named = re.fullmatch(r"([^=/\\]+)=(.*\.py\b.*)", text)
    return (named[1], _method(named[1], named[2])) if named else (None, _method(text, text))


def _method(name: str, method: object) -> MethodSpec | OwnSampler:
    if isinstance(method, MethodSpec):
        return method
    if isinstance(method, str) and ".py" in method:
        return OwnSampler.load(method).checked()
    if isinstance(method, str):
        if method in METHODS:
            return METHODS[method]
        raise BenchmarkError(
            f"no method named {method!r}{nearest(method, METHODS)}; known methods: "
            f"{', '.join(METHODS)}, or your own as FILE.py:FUNCTION"
        )
    if callable(method):
        return OwnSampler(getattr(method, "__qualname__", name), given=method).checked()
    hint = "; give a function that makes a new sampler for each search"
    raise BenchmarkError(
        f"method {name!r}: expected a name, a MethodSpec or a function, {EXPECTED}, got "
        f"{type(method).__name__}{hint if isinstance(method, BaseSampler) else ''}"
    )


def _short(method: MethodSpec | OwnSampler) -> str:
    return method.name if isinstance(method, OwnSampler) else ""


def _long(method: MethodSpec | OwnSampler) -> str:
    file = method.file if isinstance(method, OwnSampler) else None
    return f"{file.path.stem}.{_short(method)}" if file else _short(method)


def _check(name: str, method: MethodSpec | OwnSampler) -> None:
    if not (isinstance(name, str) and name.strip() == name != "" and name.isprintable()):
        raise BenchmarkError(f"method {name!r}: expected a name on one line; rename it")
    if name in METHODS and method is not METHODS[name]:
        raise BenchmarkError(f"method {name!r}: a built-in method has that name; rename yours")
