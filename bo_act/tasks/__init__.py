"""Tasks: what a study file names, loaded and ready to train."""
