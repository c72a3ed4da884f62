"""Modular arithmetic: the task, the network, its training step, and what is measured of it."""
