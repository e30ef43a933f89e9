"""The documentation says what is so: code runs, files validate, links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.main import get_command

from bo_act.cli import app
from bo_act.comparison.plan import ComparisonPlan, read_plan
from bo_act.specs import SpaceSpec, Spec, StudySpec

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("studies/**/*.md")])


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, plain, with_features = blocks("README.md", "python")
    names: dict = {}
    exec(model, names)
    net = names["build"](nn.ReLU, in_channels=1, image_size=8, num_classes=10)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    def train_and_validate(activation: nn.Module, rate: float) -> float:
        return float(activation(torch.tensor([0.5]))) - rate

    names = {"train_and_validate": train_and_validate}
    exec(plain.replace("n_trials=50", "n_trials=3"), names)
    assert len(names["study"].trials) == 3
    assert set(names["study"].trials[0].params) == {"binary", "left", "right", "lr"}

    class MyNetwork(nn.Sequential):
        def __init__(self, activation):
            super().__init__(nn.Flatten(), nn.Linear(4, 3), activation(), nn.Linear(3, 2))

    names |= {
        "MyNetwork": MyNetwork,
        "images": torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        "labels": torch.zeros(8, dtype=torch.long),
    }
    exec(with_features, names)
    assert set(names["features"].blocks) == {"outputs", "moments", "fim", "fim_null"}


def test_the_docs_python_runs(act_bench):
    import optuna

    from bo_act import compute_features

    search, warm, several = blocks("docs/search.md", "python")
    names: dict = {
        "space": act_bench,
        "features": compute_features(act_bench),
        "indices": torch.arange(5).numpy(),
        "values": torch.linspace(0, 1, 5).numpy(),
    }
    exec("import bo_act\n" + search, names)
    assert names["proposal"].index not in {17, 0, 1, 2, 3, 4}
    exec(warm, names)
    assert list(names["sampler"].embedding.blocks) == ["outputs", "sources"]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names["study"] = optuna.create_study()
    exec("import bo_act\n" + several + "    return rate\n", names)
    names["study"].optimize(names["objective"], n_trials=2)
    assert {"early.left", "late.left", "lr"} <= set(names["study"].best_params)
    (compared,) = blocks("docs/benchmarks.md", "python")
    exec("import bo_act\n" + compared, {})
    (spaces,) = blocks("docs/spaces.md", "python")
    names = {"evaluate": lambda activation: 0.0}
    exec("import bo_act, optuna\n" + spaces.replace("n_trials=50", "n_trials=2"), names)
    assert len(names["study"].trials) == 2


def test_files_in_the_docs_validate():
    for text in blocks("README.md", "toml"):
        StudySpec.model_validate(tomllib.loads(text))
    task = '[model]\nname = "mlp"\noptions = { width = 64 }\n[data]\nname = "digits"\n'
    for text in blocks("docs/studies.md", "toml"):
        StudySpec.model_validate(tomllib.loads(f'name = "a"\n{task}{text}'))
    for text in blocks("docs/benchmarks.md", "toml"):
        assert ComparisonPlan.model_validate(tomllib.loads(text)).chosen()
    for file in (ROOT / "studies" / "comparisons").glob("*.toml"):
        assert read_plan(file, {}).chosen()
    for text in blocks("docs/spaces.md", "toml"):
        SpaceSpec.model_validate(tomllib.loads(text))


def leaves(form: type[Spec], prefix: str = "") -> list[str]:
    found = []
    for name, field in form.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Spec):
            found += leaves(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def test_every_key_of_a_study_is_documented():
    table = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[a-z_]+", table))
    undocumented = {key for key in leaves(StudySpec) if key.rsplit(".", 1)[-1] not in words}
    # One choice each, so there is nothing to say yet.
    assert undocumented <= {"description"}


def test_commands_in_the_docs_exist():
    commands = set(get_command(app).commands)
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            assert set(re.findall(r"^bo-act (\w+)", block, flags=re.MULTILINE)) <= commands
            makefile = (ROOT / "Makefile").read_text()
            for target in re.findall(r"^make ([\w-]+)", block, flags=re.MULTILINE):
                assert f"\n{target}:" in makefile
