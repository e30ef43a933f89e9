"""Python files of users: all kinds are loaded in one way."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bo_act.activations.module import Activation
from bo_act.data.loading import load_data
from bo_act.errors import BoActError
from bo_act.networks import load_network
from bo_act.specs import DataSpec, ModelSpec, StudySpec
from bo_act.study.running.callbacks import Callbacks
from bo_act.tasks.objective import Objective

NETWORK = """
from torch import nn
def build(activation, *, in_channels, image_size, num_classes):
    inputs = in_channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, SIZE), activation(), nn.Linear(SIZE, 2))
"""
DATA = """
import torch
def load(*, train):
    return torch.rand(SIZE, 1, 4, 4), torch.arange(SIZE) % 2
"""


def network(size: int = 5) -> torch.nn.Module:
    build = load_network(ModelSpec(name="./mine.py"))
    return build(relu, in_channels=1, image_size=4, num_classes=2, seed=0)


def relu() -> torch.nn.Module:
    return Activation("relu(x)")


def called_back() -> int:
    spec = {"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits"}}
    told = Callbacks.of(StudySpec.model_validate(spec | {"callbacks": ["mine.py:log"]}))
    seen: dict[str, int] = {}
    told._named[0][1](None, seen)
    return seen["size"]


def kinds() -> dict[str, tuple[str, Callable[[], int]]]:
    """What stands in such a file, which uses SIZE, and the SIZE that it turns out to use."""
    return {
        "model": (NETWORK, lambda: network()[1].out_features),
        "objective": (
            "def objective(trial, activation): return SIZE\n",
            lambda: Objective.load("mine.py:objective").function(None, None),
        ),
        "callbacks": ("def log(study, trial): trial['size'] = SIZE\n", called_back),
        "data": (DATA, lambda: len(load_data(DataSpec(name="mine.py:load")).load_test())),
    }


every_kind = pytest.mark.parametrize("kind", list(kinds()))


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loaded(kind: str, head: str, others: dict[str, str] | None = None) -> Any:
    """Write ``mine.py`` and files beside it, load it, and return its SIZE."""
    body, size = kinds()[kind]
    Path("mine.py").write_text(f"{head}\n{body}", encoding="utf-8")
    for name, text in (others or {}).items():
        path = Path(f"{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return size()


@every_kind
def test_dataclasses_with_postponed_annotations(kind):
    head = """
from __future__ import annotations
from dataclasses import dataclass, KW_ONLY
from typing import ClassVar, get_type_hints
@dataclass
class Settings:
    kept: ClassVar[list[int]] = []
    _: KW_ONLY
    size: int = 12
SIZE = Settings().size + len(get_type_hints(Settings)) - 3
"""
    assert loaded(kind, head) == 12


@every_kind
@pytest.mark.parametrize(
    "head",
    [
        "import helpers\nSIZE = helpers.SIZE",
        "from helpers import SIZE",
        "from helpers import *",
        "from . import helpers\nSIZE = helpers.SIZE",
        "from .helpers import SIZE",
        "def size():\n    import helpers\n    return helpers.SIZE\nSIZE = size()",
        "import parts.sizes as sizes\nSIZE = sizes.SIZE",
        "import parts.sizes\nSIZE = parts.sizes.SIZE",
        "from parts import sizes\nSIZE = sizes.SIZE",
        "import folder.deep\nSIZE = folder.deep.SIZE",
    ],
)
def test_a_file_imports_what_lies_beside_it(kind, head):
    others = {
        "helpers": "from further import *\n",
        "further": "SIZE = 14\n",
        "parts/__init__": "",
        "parts/sizes": "from . import numbers\nimport helpers\nSIZE = numbers.SIZE\n",
        "parts/numbers": "SIZE = 14\n",
        "folder/deep": "import parts.sizes\nSIZE = parts.sizes.SIZE\n",
    }
    before = list(sys.path)
    assert loaded(kind, head, others) == 14
    assert sys.path == before
    assert not {"helpers", "further", "parts", "folder"} & set(sys.modules)


@every_kind
def test_a_helper_that_changes_is_loaded_anew(kind):
    assert loaded(kind, "from helpers import SIZE", {"helpers": "SIZE = 12\n"}) == 12
    assert loaded(kind, "from helpers import SIZE", {"helpers": "SIZE = 16\n"}) == 16


def test_helpers_of_one_name_in_two_folders(tmp_path, monkeypatch):
    for size, folder in enumerate(["one", "two"], start=12):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        head = "import json\nimport random as r\nSIZE = r.SIZE\nassert json.dumps"
        assert loaded("callbacks", head, {"random": f"SIZE = {size}\n"}) == size
    assert not hasattr(sys.modules.get("random"), "SIZE")


def test_a_folder_that_is_no_package_hides_no_module():
    """As in Python itself: ``torch/notes.py`` beside a file is not torch."""
    others = {"torch/notes": "", "optuna/a": "", "json/b": "1 / 0"}
    head = "import torch, optuna, json\nassert torch.zeros and optuna.Study and json.dumps"
    assert loaded("callbacks", f"{head}\nSIZE = 2", others) == 2


def test_a_helper_is_part_of_the_content():
    plain = loaded_hash("SIZE = 2", "")
    assert loaded_hash("SIZE = 2", "SIZE = 2") == plain
    first = loaded_hash("from helpers import SIZE", "SIZE = 2")
    assert loaded_hash("from helpers import SIZE", "SIZE = 2 # the same") != first


def loaded_hash(head: str, helper: str) -> str:
    loaded("model", head, {"helpers": helper or "SIZE = 1"})
    objective = f"{head}\ndef objective(trial, activation): pass\n"
    Path("other.py").write_text(objective)
    return (
        load_network(ModelSpec(name="./mine.py")).source_hash
        + Objective.load("other.py:objective").source_hash
    )


def test_a_network_travels_with_its_helpers():
    loaded("model", "from helpers import SIZE", {"helpers": "SIZE = 7\n"})
    packed = pickle.dumps(load_network(ModelSpec(name="./mine.py")))
    Path("helpers.py").write_text("1 / 0\n")
    for name in [one for one in sys.modules if one.startswith("_bo_act_file_")]:
        del sys.modules[name]
    there = pickle.loads(packed)
    built = there(relu, in_channels=1, image_size=4, num_classes=2, seed=0)
    assert built[1].out_features == 7


def test_what_a_file_defines_can_be_pickled():
    loaded("model", "import helpers\nSIZE = 2", {"helpers": "class Thing: pass\n"})
    module = sys.modules[load_network(ModelSpec(name="./mine.py")).build.__module__]
    thing = module.helpers.Thing()
    assert type(pickle.loads(pickle.dumps(thing))) is type(thing)


def test_a_file_hides_no_module():
    loaded("callbacks", "SIZE = 1")
    Path("mine.py").rename("json.py")
    spec = {"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits"}}
    Callbacks.of(StudySpec.model_validate(spec | {"callbacks": ["json.py:log"]}))
    assert hasattr(sys.modules["json"], "dumps")


@every_kind
@pytest.mark.parametrize(
    ("head", "others", "says"),
    [
        ("SIZE = 1\nSIZE = nothing", {}, r"NameError: name 'nothing' .* \(mine\.py, line 2\)"),
        ("import helpers", {"helpers": "\n\n1 / 0"}, r"ZeroDivision.* \(helpers\.py, line 3\)"),
        ("SIZE = (", {}, r"SyntaxError: '\(' was never closed \(mine\.py, line 1\)"),
        ("import helpers", {"helpers": "a b"}, r"SyntaxError: .* \(helpers\.py, line 1\)"),
        ("import no_such_helper", {}, r".*No module named 'no_such_helper' \(mine\.py, line 1\)"),
        ("from helpers import a", {"helpers": ""}, r".*cannot import name 'a' from 'helpers' \("),
        ("from . import nothing", {}, r".*'nothing' .* module 'mine' .*line 1\)"),
        ("raise SystemExit('over')", {}, r"SystemExit: over \(mine\.py, line 1\)"),
        ("import torch\ntorch.zeros(2) @ torch.ones(3)", {}, r"RuntimeError.* \(mine\.py, line 2"),
        ("# coding: nonsense", {}, r"SyntaxError: unknown encoding"),
        ("SIZE = '\0'", {}, r"(ValueError|SyntaxError): source code .*null bytes"),
        ("def f():\n    yield\n  x", {}, "IndentationError"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(kind, head, others, says):
    modules = set(sys.modules)
    with pytest.raises(BoActError, match=rf"mine\.py cannot be imported: {says}") as error:
        loaded(kind, head, others)
    assert "\n" not in str(error.value)
    assert "_bo_act_" not in str(error.value)
    assert not [name for name in set(sys.modules) - modules if name.startswith("_bo_act_")]


@every_kind
def test_what_is_mended_is_loaded(kind):
    with pytest.raises(BoActError):
        loaded(kind, "import helpers\nSIZE = helpers.SIZE", {"helpers": "1 / 0"})
    assert loaded(kind, "import helpers\nSIZE = helpers.SIZE", {"helpers": "SIZE = 12"}) == 12


@every_kind
def test_a_byte_order_mark_and_other_encodings_are_read(kind):
    body, size = kinds()[kind]
    Path("mine.py").write_bytes(b"\xef\xbb\xbf" + f"SIZE = 11 + len('é')\n{body}".encode())
    assert size() == 12
    text = f"# coding: latin-1\nSIZE = 12 + len('é')\n{body}"
    Path("mine.py").write_bytes(text.encode("latin-1"))
    assert size() == 13


@every_kind
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("nowhere.py", "nowhere.py'"),
        ("folder.py", "folder.py"),
        ("~nobody-here/a.py", "a.py"),
        ("a\0b.py", r"a\x00b.py"),
    ],
)
def test_a_file_that_is_none(kind, place, says):
    Path("folder.py").mkdir()
    with pytest.raises(BoActError) as error:
        {
            "model": lambda: load_network(ModelSpec(name=place)),
            "objective": lambda: Objective.load(f"{place}:objective"),
            "callbacks": lambda: Callbacks.of(
                StudySpec.model_construct(name="a", callbacks=(f"{place}:log",))
            ),
            "data": lambda: load_data(DataSpec.model_construct(name=f"{place}:load", root=None)),
        }[kind]()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_compiled_network_with_helpers():
    loaded("model", "from helpers import SIZE", {"helpers": "SIZE = 3\n"})
    built = network()
    images = torch.rand(2, 1, 4, 4)
    compiled = torch.compile(built, backend="eager")
    torch.testing.assert_close(compiled(images), built(images))
