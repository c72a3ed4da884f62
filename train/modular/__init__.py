"""Modular arithmetic: the task, the network, its training and what is measured of it."""
