"""The documentation says what is so: code runs, files and commands are valid, links lead on."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tomllib
from html import escape
from typing import get_args, get_origin
from xml.etree import ElementTree

import numpy as np
import optuna
import pytest
import torch
from pages import PAGES, ROOT, blocks, commands, name, with_blocks
from torch import nn
from typer.main import get_command

import bo_act
from bo_act.cli import app
from bo_act.comparison.plan import ComparisonPlan, read_plan
from bo_act.specs import SpaceSpec, Spec, StudySpec

SHELL_WORDS = {
    "createdb",
    "sbatch",
    "cd",
    "cp",
    "export",
    "git",
    "pip",
    "python",
    "ray",
    "srun",
    "optuna-dashboard",
    "torchrun",
}
"""What a block of shell may hold beside bo-act and make; nothing here can run or check these."""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


class WithFresh(nn.Sequential):
    """Written for what makes modules."""

    def __init__(self, activation):
        super().__init__(
            nn.Flatten(), nn.Linear(64, 4), activation(), nn.Linear(4, 4), activation(),
            nn.Linear(4, 10),
        )  # fmt: skip


class WithModule(nn.Sequential):
    """Written for a module."""

    def __init__(self, activation: nn.Module):
        super().__init__(
            nn.Flatten(), nn.Linear(64, 4), activation, nn.Linear(4, 4), activation,
            nn.Linear(4, 10),
        )  # fmt: skip


def train_and_validate(network: nn.Module, rate: float = 0.1) -> float:
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    loss = nn.functional.cross_entropy(network(images), torch.arange(8))
    loss.backward()
    optimizer.step()
    return -loss.item()


TOGETHER = [
    ROOT / "README.md",
    ROOT / "docs/how_to/own_network.md",
    ROOT / "docs/how_to/own_training_loop.md",
    ROOT / "docs/how_to/other_parameters.md",
]


FRAMEWORKS = ROOT / "docs/how_to/recipes.md"  # test_framework_recipes.py runs it
SEVERAL = ROOT / "docs/how_to/several_objectives.md"
TRANSFORMER = ROOT / "docs/how_to/own_transformer.md"  # test_own_transformer.py runs it


@pytest.mark.parametrize("network", [WithFresh, WithModule])
@pytest.mark.parametrize("pages", [TOGETHER, [*TOGETHER[:1], *TOGETHER[:0:-1]]], ids=["on", "back"])
def test_pages_on_a_loop_of_ones_own_are_one_program(pages, network, tmp_path, monkeypatch):
    """Whatever one of them calls a network or an activation goes into the code of the others."""
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names: dict = {
        "bo_act": bo_act,
        "optuna": optuna,
        "nn": nn,
        "MyNetwork": network,
        "train_and_validate": train_and_validate,
        "images": torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.arange(8),
        "__name__": "__main__",
    }
    for page in pages:
        for block in blocks(page, "python"):
            code = re.sub(r"n_trials=\d+", "n_trials=2", block)
            exec(code.replace('load_space("act_bench")', 'load_space("classic")'), names)
        names["study"].optimize(names["objective"], n_trials=2)
    assert all(trial.state.name == "COMPLETE" for trial in names["study"].trials)
    # Every network with every activation, and in the features.
    space, shape = names["space"], {"in_channels": 1, "image_size": 8, "num_classes": 10}
    activation = space.suggest(space_trial(space))

    def of_the_model_file(given):
        return names["build"](given, **shape)

    for build in (network, names["MyNetwork"], of_the_model_file):
        for given in (activation, activation()):
            assert train_and_validate(build(given)) < 0
        features = bo_act.compute_features(
            space, network=build, inputs=names["images"], targets=names["labels"]
        )
        assert features.blocks["fim"].present.any()


def test_the_page_on_several_objectives_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def train_and_time(network: nn.Module) -> tuple[float, float]:
        return train_and_validate(network), 0.001 * (1 + len(str(network)) % 7)

    names: dict = {"MyNetwork": WithFresh, "train_and_time": train_and_time}
    for block in blocks(SEVERAL, "python"):
        exec(block, names)
    assert names["study"].best_trials
    assert "Pareto front" in (tmp_path / "front.html").read_text()


def space_trial(space: bo_act.Space) -> optuna.trial.FixedTrial:
    return optuna.trial.FixedTrial(space.catalogue.params(space.catalogue.index("silu")))


@pytest.fixture(scope="module")
def output_features(act_bench):
    return bo_act.compute_features(act_bench)


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in with_blocks("python")
        if page not in (*TOGETHER, FRAMEWORKS, SEVERAL, TRANSFORMER)
    ],
    ids=name,
)
def test_python_runs(page, act_bench, output_features, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, with few trials."""
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names: dict = {
        "bo_act": bo_act,
        "optuna": optuna,
        "torch": torch,
        "nn": nn,
        "space": act_bench,
        "features": output_features,
        "indices": np.arange(5),
        "values": np.linspace(0, 1, 5),
        "study": optuna.create_study(direction="maximize"),
        "train_and_validate": train_and_validate,
        "MyNetwork": WithModule,
        "evaluate": lambda activation: float(activation(torch.tensor([0.5]))),
        "__name__": "__main__",
    }
    for block in blocks(page, "python"):
        exec(re.sub(r"n_trials=\d+", "n_trials=2", block), names)
    if "objective" in names and not names["study"].trials:
        names["study"].optimize(names["objective"], n_trials=2)


@pytest.mark.parametrize(
    "name", ["make_model", "warped", pytest.param("fully_bayesian", marks=pytest.mark.slow)]
)
def test_surrogates_of_the_page_on_own_methods_propose(name):
    names: dict = {"bo_act": bo_act}
    for block in blocks(ROOT / "docs/how_to/own_acquisition.md", "python"):
        if f"def {name}(" in block or "make_model" in block:
            exec(re.sub(r"^sampler = .*", "", re.sub(r"=128", "=4", block), flags=re.M), names)
    if name == "fully_bayesian":
        pytest.importorskip("numpyro")
    points = np.random.default_rng(0).uniform(size=(60, 4))
    sampler = bo_act.EmbeddingSampler(points, surrogate=names[name])
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: -float(points[sampler.suggest(trial)].sum()), n_trials=5)
    assert study.trials[4].user_attrs["proposal"]["by"] == "acquisition"


def test_what_the_pages_say_of_python(act_bench, output_features):
    names: dict = {"bo_act": bo_act, "space": act_bench, "features": output_features}
    names |= {"indices": np.arange(5), "values": np.linspace(0, 1, 5)}
    exec(blocks(ROOT / "docs/concepts/acquisition.md", "python")[0], names)
    assert names["proposal"].index not in {17, 0, 1, 2, 3, 4}
    exec(blocks(ROOT / "docs/how_to/warm_start.md", "python")[0], names)
    assert list(names["sampler"].embedding.blocks) == ["outputs", "sources"]


@pytest.mark.parametrize("page", with_blocks("toml"), ids=name)
def test_files_validate(page):
    """A block is a comparison, a space, or (part of) a study."""
    task = {"model": {"name": "mlp", "options": {"width": 64}}, "data": {"name": "digits"}}
    for text in blocks(page, "toml"):
        content = tomllib.loads(text)
        if "methods" in content or "method" in content:
            assert ComparisonPlan.model_validate(content).chosen()
        elif "schemas" in content:
            SpaceSpec.model_validate(content)
        else:
            StudySpec.model_validate({"name": "a", **task, **content})


def test_comparisons_validate():
    for file in (ROOT / "studies" / "comparisons").glob("*.toml"):
        assert read_plan(file, {}).chosen()


def leaves(form: type[Spec], prefix: str = "") -> list[str]:
    found = []
    for key, field in form.model_fields.items():
        # "Spec" or "Spec | None"; a spec in itself is a table in a table.
        kinds = get_args(field.annotation) or (field.annotation,)
        kinds = () if get_origin(field.annotation) in (dict, tuple) else kinds
        specs = [one for one in kinds if isinstance(one, type) and issubclass(one, Spec)]
        if specs and specs[0] is not form:
            found += leaves(specs[0], f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def test_every_key_of_a_study_is_documented():
    table = (ROOT / "docs" / "reference" / "study_file.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[a-z_]+", table))
    undocumented = {key for key in leaves(StudySpec) if key.rsplit(".", 1)[-1] not in words}
    # One choice each, so there is nothing to say yet.
    assert undocumented <= {"description"}


def test_the_defaults_of_a_study_are_those_that_are_stated():
    least = {"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits"}}
    defaults = StudySpec.model_validate(least).model_dump(mode="json")
    table = (ROOT / "docs/reference/study_file.md").read_text(encoding="utf-8").split("\n\n")[2]
    compared = 0
    for line in table.splitlines()[2:]:
        _, names, texts, *_ = line.split("|")
        keys, stated = re.findall(r"`([a-z_.]+)`", names), texts.strip().split(", ")
        if len(keys) != len(stated) or not stated[0]:
            continue
        part = keys[0].rpartition(".")[0]
        for key, text in zip(keys, stated, strict=True):
            value = defaults[part][key.rpartition(".")[2]] if part else defaults[key]
            try:
                assert json.loads(text.strip("`")) == value, key
            except json.JSONDecodeError:  # a word for what happens without a value
                assert value in (None, [], {}, 0), key
            compared += 1
    assert compared > 60


def read_by_the_command_line(words: list[str]) -> None:
    """Read a command as the command line does, without running it."""
    assert "--install-completion" not in words, "typer obeys it while it reads"
    command, words = get_command(app), words[1:]
    context = command.make_context("bo-act", list(words))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        _, command, rest = command.resolve_command(context, rest)
        context = command.make_context(command.name, rest, parent=context)


@pytest.mark.parametrize("page", with_blocks("bash"), ids=name)
def test_commands_are_read(page):
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks(page, "bash"):
        for words in commands(block):
            if words[0] == "bo-act":
                read_by_the_command_line(words)
            elif words[0] == "make":
                assert f"\n{words[1]}:" in makefile, words
            else:
                assert words[0] in SHELL_WORDS, words


def test_every_name_of_the_package_has_a_reference():
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: bo_act\.(\w+)$", page, flags=re.MULTILINE)) == {
        key for key in bo_act.__all__ if key[0] != "_"
    }


EQUATION = re.compile(r"^\$\$\n(.+?)\n\$\$$|(?<![\w$])\$([^\s$][^$\n]*?)\$(?![\w$])", re.M | re.S)


def equations(page) -> list[str]:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.M | re.S)
    return [block or inline for block, inline in EQUATION.findall(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if equations(page)], ids=name)
def test_equations_become_mathml(page):
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "equations.py"))
    for latex in equations(page):
        content = hook["on_page_content"](f'<div class="arithmatex">\\[{escape(latex)}\\]</div>')
        root = ElementTree.fromstring(content)
        assert root[0].tag == "{http://www.w3.org/1998/Math/MathML}math", latex
        assert not root[0].findall(".//{*}merror"), latex


def test_an_equation_that_cannot_be_set_is_an_error():
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "equations.py"))
    with pytest.raises(ValueError, match=r"not known: .*undefined"):
        hook["mathml"](r"a + \undefined b", display="inline")


def test_every_concept_has_its_equation():
    concepts = sorted((ROOT / "docs" / "concepts").glob("*.md"))
    assert len(concepts) == 5
    assert [page.name for page in concepts if not any("=" in one for one in equations(page))] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """It is built strictly by `make docs`, too; here, that it asks for nothing from outside."""
    site = tmp_path / "site"
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(site),
    ]
    subprocess.run(build, cwd=ROOT, check=True)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//", text), page
        assert not re.findall(r"<link[^>]+(?:stylesheet|preload)[^>]+href=\"(?:https?:)?//", text)
        if page.parent.name == "concepts":
            assert "<math" in text
            assert r"\(" not in text
            assert r"\[" not in text
    assert "bo-act run" in (site / "reference" / "command_line.html").read_text(encoding="utf-8")
