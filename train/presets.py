"""Settings that the presets of several commands share."""

from typing import Any

# The published training on CIFAR-10: SGD of 0.03 with a cosine, batches of 64, WideResNet-28-2. The rest
# is the default of `Settings`.
PAPER: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "wrn-28-2",
    "augment": True,
    "batch_norm_momentum": 0.999,
    "steps": 2**20,
}

# A small network on CIFAR-10 that two cores train in minutes, measured on the test set.
SMALL: dict[str, Any] = {"dataset": "cifar10", "model": "conv", "eval_train": False}
