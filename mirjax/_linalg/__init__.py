"""One matrix: spectra, decompositions, entropies by products, precision."""
