"""The commands of the documentation, run as they stand there, in a folder where studies are small.

A page's blocks are run one after the other. The studies that they name are found in the working
folder, under the same names as the shipped ones: a few functions, a small network, little data.
Comparisons and builds get a few seeds. What is not run is listed with the reason, and nothing else.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from benchmarks_of_tests import random_benchmark
from made_up import TASK
from pages import PAGES, ROOT, blocks, commands, name, with_blocks
from servers import PostgreSQL

from bo_act import load_space
from bo_act.activations.operators import OPERATORS
from bo_act.benchmark.parquet import save

NOT_RUN = {
    "CONTRIBUTING.md": {
        "make test": "runs these tests",
        "make check": "is run beside these tests",
        "make format": "changes files",
    },
    "README.md": {
        "make quickstart": "installs packages from the network; `bo-act run quickstart` is run",
        "make test": "installs packages from the network",
    },
    "docs/index.md": {
        "make quickstart": "installs packages from the network; `bo-act run quickstart` is run",
        "make test": "installs packages from the network",
    },
    "docs/getting_started.md": {"make quickstart": "installs packages from the network"},
    "docs/how_to/cluster.md": {
        "createdb -h server studies": "the server of these tests has its database",
        "sbatch --array=1-8 docs/slurm_workers.sh my_study.toml "
        "postgresql://me@server/studies": "needs Slurm",
        "bo-act run my_study.toml --executor ray --workers 8 --storage "
        "postgresql://me@server/studies": "needs a Ray cluster; test_ray.py has a small one",
        "bo-act release my_study.toml 17 --storage postgresql://me@server/studies": "needs a "
        "worker that has died; test_ownership.py has some",
        "export RAY_AUTH_MODE=token": "needs several machines",
        "ray get-auth-token --generate": "needs several machines",
        "ray start --head --port=6379": "needs several machines",
        "ray start --address=first-machine:6379": "needs several machines",
        "bo-act features my_study --workers 16 --executor ray": "needs several machines",
        "ray stop": "needs several machines",
    },
    "docs/how_to/recipes.md": {
        "torchrun --standalone --nproc-per-node 2 ddp.py": "test_framework_recipes.py runs it",
    },
    "docs/how_to/compare_methods.md": {
        "bo-act bench fetch https://example.org/act_bench_cnn.json.gz --to data": "needs the "
        "network; test_fetch.py has a server",
        "bo-act bench show data/act_bench_cnn.json.gz": "needs the file of the line before",
    },
    "docs/how_to/own_network.md": {
        "python tests/benchmarks/networks.py": "takes an hour",
        "python tests/benchmarks/architectures.py": "takes minutes",
    },
    "docs/how_to/watch.md": {
        "pip install bo-act[dashboard]": "installs packages from the network",
        "optuna-dashboard sqlite:///runs/quickstart/study.db": "serves until it is stopped; "
        "test_callbacks.py has it in a browser",
    },
    "docs/results/search.md": {
        "make benchmark-trainings TABLE=parameters": "takes hours",
        "make benchmark-trainings TABLE=spaces ARGS=--seeds 8": "takes hours",
        "make benchmark-trainings TABLE=activations": "takes hours",
        "make benchmark-robustness ARGS=--targets winsorized rank_normal": "takes half an hour",
        "make benchmark-spectra": "takes a quarter of an hour",
        "python tests/benchmarks/recommendations.py": "takes a minute",
        "python tests/benchmarks/warm.py --seeds 10 --benchmarks digits_resnet fashion_vit "
        "topics_gpt --ways cold warm warm, no block": "takes an hour",
        "python tests/benchmarks/null_space.py --root FOLDER_OF_FASHION_MNIST": "needs the data",
    },
    "docs/results/benchmarks.md": {
        "python tests/benchmarks/peers.py --seeds 2 --workers 2": "needs Ax, SMAC3 and HEBO, and "
        "an hour",
        "python tests/benchmarks/intervals.py": "takes a minute; test_metrics.py has a part",
        "python tests/benchmarks/repetition.py --seeds 30": "takes half an hour",
        "python tests/benchmarks/repetition.py --first-seed 30 --seeds 30 "
        "--rules never pool": "takes a quarter of an hour",
    },
    "docs/results/speed.md": {
        "make benchmark-fim": "takes minutes; test_benchmarks.py runs it on a small network",
        "make benchmark-fim ARGS=--networks resnet56 vit --functions 8 --repeat 3 "
        "--threads 1": "takes minutes",
        "make benchmark-fim ARGS=--device cuda --json": "needs a GPU",
        "make benchmark-throughput ARGS=--epochs 20 --rounds 15 --at-once 1 2": "takes minutes",
        "make benchmark-throughput ARGS=--data fashion_mnist --epochs 1 --rounds 11": "takes "
        "minutes",
        "make benchmark-activations ARGS=--threads 1": "takes minutes",
    },
    "docs/results/studies.md": {
        "make quickstart": "installs packages from the network",
        "make benchmark-learnable": "takes minutes",
        "python tests/benchmarks/intervals.py --confirmations": "takes a minute; "
        "test_statistics.py has a part",
    },
}
"""Page → command → why it is not run."""

SLOW = {
    "docs/how_to/cluster.md",
    "docs/how_to/compare_methods.md",
    "docs/how_to/large_spaces.md",
    "docs/how_to/several_gpus.md",
    "docs/how_to/warm_start.md",
    "docs/results/measured_tasks.md",
    "docs/results/search.md",
}

BEFORE = {
    "docs/getting_started.md": ["bo-act run quickstart"],
    "docs/how_to/reports.md": ["bo-act run quickstart"],
    "docs/how_to/watch.md": ["bo-act run quickstart"],
}
"""What a page takes for granted: the page before it, say."""

LESS = {
    "compare": ["--seeds", "2", "--evaluations", "12", "--workers", "1"],
    "bench build": ["--seeds", "1", "--workers", "1"],
}
"""What is added to a command, so that it does less; the last of two same options holds."""

STUDY = f"""
name = "NAME"
space = "classic"
storage = "studies.log"
trials = 20
{TASK}device = "cpu"
[features]
batch_size = 16
quantiles = 8
[confirm]
top = 1
seeds = 2
"""

SMALLER = {
    "trials = 60": "trials = 12",
    "trials = 30": "trials = 12",
    "epochs = 10": "epochs = 1",
    'space = "act_bench"': 'space = "classic"',
    'name = "poisson"': 'name = "poisson"\nspace = "classic"',
    "STEPS = 300": "STEPS = 50",
    'name = "fashion_mnist"': 'name = "digits"\ntrain = 200\nvalidation = 100',
}
"""What is changed in the files that pages show."""


def written(words: list[str]) -> str:
    return " ".join(words)


def lines(page: Path) -> list[list[str]]:
    return [words for block in blocks(page, "bash") for words in commands(block)]


def to_run(page: Path) -> list[list[str]]:
    return [w for w in lines(page) if written(w) not in NOT_RUN.get(name(page), {})]


RUN = [page for page in with_blocks("bash") if to_run(page)]


def test_what_is_not_run_is_there():
    pages = {name(page): page for page in PAGES}
    for of, reasons in NOT_RUN.items():
        there = {written(words) for words in lines(pages[of])}
        assert set(reasons) <= there, f"{of}: no longer there"
        assert all(reasons.values())
    others = [written(w) for page in RUN for w in to_run(page) if w[0] != "bo-act"]
    assert others == [], "neither run nor listed as not run"
    run = {name(page) for page in RUN}
    assert run >= SLOW
    assert run >= BEFORE.keys()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder in which commands are run."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "studies" / "benchmarks").mkdir(parents=True)
    shutil.copytree(ROOT / "studies" / "comparisons", folder / "studies" / "comparisons")
    shipped = [file.stem for file in (ROOT / "studies").glob("*.toml")]
    for study in shipped:
        (folder / "studies" / f"{study}.toml").write_text(STUDY.replace("NAME", study))
    (folder / "my_study.toml").write_text(STUDY.replace("NAME", "my_study"))
    files = (ROOT / "studies" / "benchmarks").glob("*.parquet")
    measured = sorted(f"studies/benchmarks/{file.name}" for file in files)
    for seed, file in enumerate([*measured, "my.parquet"]):
        one = random_benchmark(load_space("classic"), seed=seed)
        save(dataclasses.replace(one, name=Path(file).stem), folder / file)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    there = tmp_path / "work"
    shutil.copytree(made, there)
    monkeypatch.chdir(there)
    return there


@pytest.fixture
def address():
    """Of a database, for those who ask."""
    servers: list[PostgreSQL] = []

    def url() -> str:
        servers.append(PostgreSQL())
        return servers[0].url

    yield url
    for server in servers:
        server.close()


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows with their name in the first line."""
    for language in ("python", "toml"):
        for text in blocks(page, language):
            if shown := re.match(r"# (\w+\.(?:py|toml))\n", text):
                for old, new in SMALLER.items():
                    text = text.replace(old, new)  # noqa: PLW2901
                (folder / shown[1]).write_text(text)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] * (name(p) in SLOW), id=name(p)) for p in RUN],
)
def test_commands_run(page, folder, address, bo_act, monkeypatch):
    times = dict.fromkeys(OPERATORS, 1.0)  # timing them takes seconds, and says nothing here
    monkeypatch.setattr("bo_act.report.data.operator_times", lambda **_: times)
    write_files(page, folder)
    start = [line.split() for line in BEFORE.get(name(page), [])]
    url = address() if any("postgresql://" in written(words) for words in to_run(page)) else ""
    for words in [*start, *to_run(page)]:
        arguments = [word.replace("postgresql://me@server/studies", url) for word in words[1:]]
        usual = ["--workers", "2"] if "--workers" in words else []
        some = (less for command, less in LESS.items() if written(arguments).startswith(command))
        arguments += next(some, usual)
        code, out, err = bo_act(*arguments)
        plt.close("all")
        assert code == 0, f"{written(words)}\n{err}"
        assert out or err, written(words)
