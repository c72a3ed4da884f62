"""Training scripts, run as `python -m train.NAME` from the repository root."""
