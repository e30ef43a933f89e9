"""Every error that bo-act raises on purpose.

    BoActError
    ├── MissingExtraError      an optional package that is not installed
    ├── ContentNotFoundError   a space, model or study that does not exist
    ├── SpecError              a file with invalid content
    ├── ExpressionError        a text that is not an activation function
    ├── NetworkError           a model file or network that cannot be used
    ├── DataError              a data set that cannot be read
    ├── FeatureError           features that cannot be computed or read
    ├── SearchError            a search that cannot continue
    │   └── ExhaustedError     every function was tried
    ├── BenchmarkError         a benchmark that cannot be read, built or replayed
    ├── ExportError            a function that cannot be exported to a target
    ├── WorkerError            worker processes that cannot start, die, or end with an error
    └── StorageError           a study storage that cannot be reached or holds something else

Each message says what was expected, what came, and what to do, and contains no secrets. The
command line prints it on one line and exits with 2.
"""

__all__ = [
    "BenchmarkError",
    "BoActError",
    "ContentNotFoundError",
    "DataError",
    "ExhaustedError",
    "ExportError",
    "ExpressionError",
    "FeatureError",
    "MissingExtraError",
    "NetworkError",
    "SearchError",
    "SpecError",
    "StorageError",
    "WorkerError",
    "nearest",
]

from collections.abc import Iterable
from difflib import get_close_matches

from bo_act.urls import without_secrets


class BoActError(Exception):
    """The base of all errors that bo-act raises on purpose; their URLs have no passwords.

    Examples:
        >>> import bo_act
        >>> try:
        ...     bo_act.load_space("clasic")
        ... except bo_act.BoActError as error:
        ...     print("classic" in str(error))
        True
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(without_secrets(a) if isinstance(a, str) else a for a in arguments))


class MissingExtraError(BoActError):
    """An optional package is not installed, or cannot be imported."""


class ContentNotFoundError(BoActError):
    """A space, model or study does not exist."""


class SpecError(BoActError):
    """A study or space file is invalid."""


class ExpressionError(BoActError):
    """A text is not an activation function of the operator table.

    Attributes:
        text: the text that was read.
        position: zero-based index in ``text`` where reading stopped.
    """

    def __init__(self, message: str, *, text: str = "", position: int | None = None) -> None:
        self.text = text
        self.position = position
        if position is not None:
            where = f" of {text!r}" if len(text) <= 80 else f", {_around(text, position)}"
            message = f"{message} (at position {position}{where})"
        super().__init__(message)


def _around(text: str, position: int, *, width: int = 40) -> str:
    """Return the surroundings of a position in a long text."""
    before, after = text[max(0, position - width) : position], text[position : position + width]
    before = ("..." if position > width else "") + before
    after += "..." if position + width < len(text) else ""
    return f"{before!r} ^ {after!r}"


class NetworkError(BoActError):
    """A model file or a network does not fulfil its contract."""


class DataError(BoActError):
    """A data set is missing or invalid."""


class FeatureError(BoActError):
    """Features cannot be computed or read."""


class SearchError(BoActError):
    """The search cannot continue: nothing to propose, or inputs that do not fit together."""


class ExhaustedError(SearchError):
    """There is nothing left to propose: all functions were evaluated or are running."""


class BenchmarkError(BoActError):
    """A benchmark cannot be read, built or replayed."""


class ExportError(BoActError):
    """A function cannot be exported to a target."""


class WorkerError(BoActError):
    """Worker processes cannot start, die, or end with an error."""


class StorageError(BoActError):
    """A storage cannot be reached, or holds a study that does not match."""


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word nearest to ``word``, or ``""``.

    Args:
        word: the unknown word.
        known: words.
        cutoff: least similarity, 0 to 1.
    """
    match = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {match[0]!r}?)" if match else ""


def shortened(text: str, *, most: int = 80) -> str:
    """Return a text, shortened if long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
