"""K-FAC spectra of any network; nothing here knows of activation functions."""
