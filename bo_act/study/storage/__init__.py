"""What a study keeps, and who may write to it."""
