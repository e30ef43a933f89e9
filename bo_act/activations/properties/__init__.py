"""What a function does with numbers: slopes, faults, smoothness, and which are the same."""
