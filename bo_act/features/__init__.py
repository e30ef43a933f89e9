"""Features of a function before training: output distribution and Fisher spectra."""
