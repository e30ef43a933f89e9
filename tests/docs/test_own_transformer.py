"""The page on a transformer of one's own runs as it stands, with fewer and shorter trainings."""

from __future__ import annotations

import shlex

import optuna
import pytest
from pages import ROOT, blocks

PAGE = ROOT / "docs" / "how_to" / "own_transformer.md"
LONG = 'SPACE, SPECTRA, STEPS, TRIALS, SEEDS = "act_bench", 200, 200, 20, 3'
SHORT = 'SPACE, SPECTRA, STEPS, TRIALS, SEEDS = "classic", 5, 2, 3, 2'


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(tmp_path, monkeypatch, capfd, bo_act):
    pytest.importorskip("transformers")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(PAGE, "python"))
    assert LONG in code
    names = {"__name__": "__main__"}
    exec(code.replace(LONG, SHORT), names)
    said = capfd.readouterr().out
    assert "transformer.h.*.mlp.act  NewGELUActivation (2 times)" in said
    assert names["features"].provenance["uncovered"] == ()
    assert len(names["features"].provenance["layers"]) == 16
    assert [len(one.values) for one in names["confirmed"]] == [2] * len(names["confirmed"])
    assert "nats per character" in (tmp_path / "report.html").read_text()
    (command,) = [part for part in PAGE.read_text().split("`") if part.startswith("bo-act best")]
    code, out, _ = bo_act(*shlex.split(command)[1:])
    assert code == 0
    assert "nats per character" in out
