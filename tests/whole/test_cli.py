"""The command line as a person or a script meets it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import TASK
from typer.main import get_command

from bo_act import cli
from bo_act.cli.options import Panel, print_json
from bo_act.specs.files import read_study
from bo_act.study.running.runner import run_study

STUDY = f"""
name = "tiny"
space = "classic"
trials = 5
initial = 0
{TASK}device = "cpu"
[features]
batch_size = 32
quantiles = 16
[confirm]
top = 1
seeds = 2
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(STUDY)


# --- what works -----------------------------------------------------------------------------


def test_space_as_json(bo_act):
    code, out, _ = bo_act("space", "act_bench", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"name", "expressions", "unique", "finite", "hash", "satisfying"} <= set(found)
    assert (found["expressions"], found["unique"], found["finite"]) == (5103, 2826, 2412)


def test_space_for_people_lists_its_functions(bo_act):
    code, out, _ = bo_act("space", "classic", "--functions")
    assert code == 0
    assert "34" in out
    assert "mul(x,tanh(softplus(tanh(x))))" in out.splitlines()


def test_space_as_json_with_functions(bo_act):
    code, out, _ = bo_act("space", "classic", "--functions", "--json")
    functions = json.loads(out)["functions"]
    assert code == 0
    assert len(functions) == len(set(functions)) == 34


def test_run_best_and_features(bo_act):
    code, out, err = bo_act("run", "tiny.toml", "--json")
    found = json.loads(out)
    assert code == 0
    assert "search: 5 of 5 to do" in err
    assert found["study"] == "tiny"
    assert found["storage"] == "runs/tiny/study.db"
    assert {"complete", "pruned", "failed", "diverged"} <= set(found["trials"])
    assert found["trials"]["complete"] == 5
    assert {"activation", "value", "values", "trial", "settings", "cost", "state"} == set(
        found["best"]
    )
    assert found["baseline"]["activation"] == "relu(x)"
    assert 0 < found["baseline"]["value"] <= found["best"]["value"]
    relu = next(row for row in found["confirmed"] if row["activation"] == "relu(x)")
    assert relu["test"]["low"] <= relu["test"]["mean"] <= relu["test"]["high"]

    code, out, err = bo_act("best", "tiny.toml", "--json")
    assert (code, json.loads(out), err) == (0, found, "")
    code, out, err = bo_act("run", "tiny.toml", "--quiet")
    assert (code, err) == (0, "")
    assert "Confirmed on the test set (2 fresh seeds" in out
    assert found["best"]["activation"] in out

    code, out, _ = bo_act("features", "tiny.toml", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["functions"] == 34
    assert {"outputs", "moments", "fim", "fim_null"} == set(found["blocks"])
    assert (found["layers"], found["uncovered"]) == (["1", "3"], [])
    assert Path(found["store"]["folder"], "manifest.jsonl").is_file()
    code, out, err = bo_act("features", "tiny.toml")
    assert "fim_null" in out
    assert "saved in" in out
    assert err == ""  # all was kept


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_for_people(bo_act):
    bo_act("features", "tiny.toml", "--quiet")
    (shard,) = Path("cache").glob("features/*/fim-*.parquet")
    shard.write_bytes(shard.read_bytes()[:-9])
    code, out, err = bo_act("features", "tiny.toml", "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["blocks"]["fim"]["present"] == 34
    assert err.startswith("warning: damaged shards in ")
    assert f"{shard.name} (" in err
    assert err.count("\n") == 1


def test_set_replaces_values(bo_act):
    code, out, _ = bo_act(
        "run", "tiny.toml", "--json", "--set", "trials=4", "--set", "name=other",
        "--set", "confirm.seeds=0", "--storage", "elsewhere.log",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert (found["study"], found["storage"]) == ("other", "elsewhere.log")
    assert found["trials"]["complete"] == 4
    assert found["confirmed"] == []
    assert Path("elsewhere.log").is_file()


def test_show_draws_in_the_terminal_and_to_a_picture(bo_act):
    code, out, _ = bo_act("show", "mul(sigmoid(x),erf(x))")
    assert code == 0
    assert "slope" in out
    assert "\x1b" not in out
    code, out, _ = bo_act("show", "relu(x)", "--json", "--png", "relu.png")
    found = json.loads(out)
    assert found["mean"] == pytest.approx(0.3989, abs=1e-3)
    assert found["variance"] == pytest.approx(0.3408, abs=1e-3)
    assert len(found["outputs"]) == 256
    assert Path("relu.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = bo_act("show", "pow(x,tanh(x))")
    assert code == 0
    assert "not finite at" in out


def test_version_and_help(bo_act):
    assert bo_act("--version")[1].startswith("bo-act ")
    assert "run quickstart" in bo_act("--help")[1]
    for command in ("space", "features", "run", "best", "show"):
        code, out, _ = bo_act(command, "--help")
        assert code == 0
        assert f"Example: bo-act {command}" in out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["show", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys; sys.argv = ['bo-act', *sys.argv[1:]]\n"
        "from bo_act.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'optuna', 'botorch', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_study_is_said_without_importing_torch():
    script = (
        "import sys; sys.argv = ['bo-act', 'run', 'quickstrat']\n"
        "from bo_act.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    code = end.code\n"
        "sys.exit(9 if 'torch' in sys.modules else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean 'quickstart'?" in done.stderr


# --- bad input ------------------------------------------------------------------------------


def changed(old: str, new: str) -> str:
    assert old in STUDY
    Path("bad.toml").write_text(STUDY.replace(old, new))
    return "bad.toml"


def bad_model(text: str) -> str:
    Path("net.py").write_text(text)
    return changed('name = "mlp"\noptions = { widths = [8] }', 'name = "net.py"')


IN_PLACE = """
from torch import nn

class Shift(nn.Module):
    def forward(self, x):
        y = self.act(x)
        x += 1
        return x * y

def build(activation, *, in_channels, image_size, num_classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, 8), nn.Linear(8, num_classes))
    network[1].register_forward_hook(lambda layer, _, y: Shift.forward(layer, y))
    network[1].act = activation()
    return network
"""


BAD = {
    "unknown key": (lambda: ["run", changed("epochs = 2", "epoch = 2")], "did you mean 'epochs'?"),
    "wrong type": (lambda: ["run", changed("epochs = 2", 'epochs = "two"')], "got 'two'"),
    "missing table": (lambda: ["run", changed('[model]\nname = "mlp"', "[model]")], "'model.name'"),
    "not TOML": (lambda: ["run", changed("trials = 5", "trials = ")], "not valid TOML"),
    "no such study": (lambda: ["run", "quickstrat"], "did you mean 'quickstart'?"),
    "no such space": (
        lambda: ["run", changed('space = "classic"', 'space = "clasic"')],
        "did you mean 'classic'?",
    ),
    "misspelled operator": (lambda: ["show", "softpluss(x)"], "did you mean 'softplus'?"),
    "unclosed bracket": (lambda: ["show", "add(relu(x),tanh(x)"], "end of the text (at position"),
    "missing data": (
        lambda: [
            "run",
            changed('name = "digits"', 'name = "fashion_mnist"\nroot = "no"'),
        ],
        "train-images-idx3-ubyte",
    ),
    "unreachable storage": (
        lambda: ["run", "tiny.toml", "--storage", "postgresql://me@127.0.0.1:1/db"],
        "cannot be reached",
    ),
    "model without build": (lambda: ["run", bad_model("x = 1\n")], "build"),
    "model that fails": (lambda: ["run", bad_model("import nothing_like_this\n")], "net.py"),
    "model that changes what a function has read": (
        lambda: ["run", bad_model(IN_PLACE)],
        "net.py: the network changes a tensor in place that the function at 1.act has read",
    ),
    "bad --set": (lambda: ["run", "tiny.toml", "--set", "trials"], "expects KEY=VALUE"),
    "not run yet": (lambda: ["best", "tiny.toml"], "bo-act run"),
    "no GPU": (
        lambda: ["run", "tiny.toml", "--set", "training.device=cuda:7"],
        "use 'auto' or 'cpu'",
    ),
    "unwritable picture": (lambda: ["show", "relu(x)", "--png", "no/where.png"], "cannot write"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_ends_with_one_line_that_helps(bo_act, what):
    arguments, says = BAD[what]
    code, out, err = bo_act(*arguments())
    assert code == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert "Traceback" not in err


def test_interrupted(bo_act, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bo_act.study.running.runner.run_study", interrupted)
    code, _, err = bo_act("run", "tiny.toml")
    assert code == 130
    assert "resumes here" in err


def test_defects_keep_their_traceback(bo_act, monkeypatch):
    """What is no BoActError is our mistake, and is shown whole."""

    def broken(name: str) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("bo_act.spaces.space.load_space", broken)
    code, _, err = bo_act("space", "classic")
    assert code == 1
    assert "in broken" in err
    assert err.splitlines()[-1] == "RuntimeError: a defect"


# --- help and completion --------------------------------------------------------------------


def test_every_command_has_a_panel_and_an_example():
    group = get_command(cli.app)
    commands = {name: group.commands[name] for name in group.commands}
    panels = list(Panel)
    for name, command in commands.items():
        assert command.rich_help_panel in panels, f"{name} names no panel of cli/options.py"
    listed = [commands[name].rich_help_panel for name in group.list_commands(None)]
    assert [panels.index(panel) for panel in listed] == sorted(map(panels.index, listed))
    nested = commands["bench"].commands
    for name, command in {**commands, **{f"bench {name}": c for name, c in nested.items()}}.items():
        examples = (command.epilog or "").partition("Example: bo-act ")[2]
        assert examples.startswith(name), f"{name} has no example"


def completions(words: str) -> list[str]:
    """What the shell offers for the last of the words, by the script that Typer installs."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['bo-act']; import bo_act.cli as c; c.main()",
        ],
        env={
            **os.environ,
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "_BO_ACT_COMPLETE": "complete_bash",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_commands_and_names_of_content():
    Path("studies").mkdir()
    Path("studies/quick_and_mine.toml").touch()
    assert completions("bo-act wh") == ["why"]
    assert completions("bo-act run qui") == ["quick_and_mine", "quickstart"]
    assert completions("bo-act run ti") == ["tiny_gpt", "tiny.toml"]
    assert completions("bo-act run studies/") == ["studies/quick_and_mine.toml"]
    assert completions("bo-act space act") == ["act_bench"]
    assert completions("bo-act bench show digits_m") == ["digits_mlp"]


# --- JSON ---------------------------------------------------------------------------------------


def strict(text: str) -> dict:
    """Read what a program in any language can read: JSON has neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_infinity_whatever_was_measured(bo_act):
    """Every function diverged, and two trials ended at one instant."""
    Path("mine.py").write_text("def objective(trial, activation):\n    return float('-inf')\n")
    Path("own.toml").write_text(
        'name = "own"\nspace = "classic"\ntrials = 2\nobjective = "mine.py:objective"\n'
    )
    run_study(read_study("own.toml"))
    with sqlite3.connect("runs/own/study.db") as database:
        database.execute("UPDATE trials SET datetime_complete = '2026-01-01 00:00:00'")
    found = {}
    for command in (["run"], ["best"], ["status"], ["why", "0"], ["worker"]):
        name, *number = command
        code, out, err = bo_act(name, "own.toml", *number, "--json")
        assert code == 0, err
        found[name] = strict(out)
    told = found["status"]
    assert (told["per_hour"], told["seconds_left"], told["done"]) == (None, None, True)
    assert found["why"]["value"] is None
    assert "rate" in bo_act("status", "own.toml")[1]


@pytest.mark.parametrize(
    "command",
    [
        ("show", "reciprocal(x)"),
        ("show", "exp(exp(exp(x)))"),
        ("bench", "show", "digits_mlp"),
        ("space", "classic"),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_json_of_other_commands(bo_act, command):
    code, out, _ = bo_act(*command, "--json")
    assert code in (0, 1)  # doctor may find a problem
    assert strict(out)


def test_schemas_are_json(bo_act):
    for kind in ("study", "space"):
        assert strict(bo_act("schema", kind)[1])["type"] == "object"


def test_what_is_not_finite_is_null(capsys):
    inf = float("inf")
    print_json({"a": inf, "b": [1.5, -inf, {"c": (float("nan"), "NaN")}], "d": True, "e": 2**70})
    found = strict(capsys.readouterr().out)
    assert found == {"a": None, "b": [1.5, None, {"c": [None, "NaN"]}], "d": True, "e": 2**70}
