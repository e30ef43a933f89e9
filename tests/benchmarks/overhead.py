"""The share of a study's time that goes into anything but training, from its own trials.

    python tests/benchmarks/overhead.py runs/quickstart/study.db quickstart

Between the start of the first trial and the end of the last one: what is not training (and its
validation) is asking, telling, storing, and the model of the search. Stops of the study in between
are counted, so give it one that ran through, with one worker.
"""

from __future__ import annotations

import sys

import optuna

from bo_act.study.storage.opening import open_storage


def main() -> None:
    """Print the shares."""
    where, name = sys.argv[1:3]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = optuna.load_study(study_name=name, storage=open_storage(where, create=False)).trials
    trials = [trial for trial in trials if "seconds" in trial.user_attrs and trial.duration]
    whole = (trials[-1].datetime_complete - trials[0].datetime_start).total_seconds()
    training = sum(trial.user_attrs["seconds"] for trial in trials)
    saving = sum(trial.user_attrs.get("seconds_saving", 0.0) for trial in trials)
    inside = sum(trial.duration.total_seconds() for trial in trials)
    print(f"{len(trials)} trials in {whole:.1f} s, training {training:.1f} s")
    print(f"outside of training: {1 - (training - saving) / whole:.1%}")
    print(f"  of it in checkpoints: {saving / whole:.1%}")
    print(f"  in trials (asking, telling, reporting): {(inside - training) / whole:.1%}")
    print(f"  between trials: {(whole - inside) / whole:.1%}")


if __name__ == "__main__":
    main()
