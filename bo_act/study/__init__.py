"""The Optuna side: sampler, storage, runner, confirmation and results."""
