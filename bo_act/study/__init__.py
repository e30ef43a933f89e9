"""Studies in Optuna: sampler, storage, runner, confirmation and results."""
