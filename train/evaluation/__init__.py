"""Metrics of a network on a split, and finished runs read again."""
