"""Metrics of a network on a split, and the reading of finished runs."""
