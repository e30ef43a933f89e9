"""What a study has found, and whether to believe it."""
