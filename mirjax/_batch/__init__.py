"""Metrics of one batch, or of any number of batches at once."""
