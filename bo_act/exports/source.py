"""The header of all exports: names, formula, origin, limits."""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from bo_act.activations.expressions import Expression, X
from bo_act.activations.formulas import plain
from bo_act.activations.scales import Scaled, distinct_nodes
from bo_act.errors import ExportError
from bo_act.exports.limits import notes


@dataclass(frozen=True)
class Source:
    """A function to export under a name.

    Attributes:
        scaled: the function, with its numbers if it has some.
        name: of the Python function, or of the model; an identifier.
    """

    scaled: Scaled
    name: str

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise ExportError(
                f"expected a valid Python function name, e.g. 'gate', got {self.name!r}"
            )

    @property
    def expression(self) -> Expression:
        """The function without its numbers."""
        return self.scaled.expression

    @property
    def factors(self) -> list[float]:
        """Factors of the input and of each operator's value, in order."""
        nodes = [X, *distinct_nodes(self.expression)]
        return [self.scaled.factors.get(node, 1.0) for node in nodes]

    @property
    def class_name(self) -> str:
        """The name in CapWords, always different from the function's."""
        words = "".join(part[:1].upper() + part[1:] for part in self.name.split("_"))
        return words if words.isidentifier() and words != self.name else f"{self.name}Module"

    @property
    def title(self) -> str:
        """One line with content and origin."""
        text = str(self.expression)
        shown = text if len(text) <= 48 else text[:45] + "..."
        return f"Activation function {shown}, from bo-act {version('bo-act')}."

    @property
    def _numbers(self) -> str:
        is_plain = self.scaled == Scaled(self.expression)
        return "" if is_plain else ", here with its learned or normalizing numbers"

    @cached_property
    def limits(self) -> list[str]:
        """Where it is not finite."""
        return notes(self.scaled)

    def description(self, dtypes: str) -> str:
        """Return a docstring's content for a function, indented by four."""
        formula = textwrap.fill(
            f"f(x) = {plain(self.scaled)}",
            92,
            subsequent_indent="        ",
            initial_indent="        ",
            break_long_words=False,
        )
        limits = "\n".join(
            textwrap.fill(
                f"{text[0].upper()}{text[1:]}.", 92, initial_indent="    ", subsequent_indent="    "
            )
            for text in self.limits
        )
        written = textwrap.fill(
            f"Elementwise; bo-act writes it {self.expression}{self._numbers}.",
            92,
            subsequent_indent="    ",
            break_long_words=False,
        )
        return f"{written}\n\n{formula}\n\n{limits}\n    {dtypes}"


def indented(lines: Sequence[str]) -> str:
    """Return lines of a function's body."""
    return "\n".join(f"    {line}" for line in lines)
