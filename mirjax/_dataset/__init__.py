"""Metrics of whole data sets: streamed, in blocks, by Lanczos iteration where they are large."""
