"""Tasks: space, data, network and objective of a study file, loaded."""
