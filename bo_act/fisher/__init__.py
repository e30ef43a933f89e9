"""K-FAC spectra of any network, independent of activation functions."""
