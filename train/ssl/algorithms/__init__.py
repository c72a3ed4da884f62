"""Semi-supervised algorithms, each a small module: settings, state, thresholds, loss."""

import dataclasses
from typing import Any

from train.ssl.algorithms.base import Algorithm as Algorithm
from train.ssl.algorithms.base import Pseudo as Pseudo
from train.ssl.algorithms.base import Views as Views
from train.ssl.algorithms.fixmatch import FixMatch
from train.ssl.algorithms.flexmatch import FlexMatch
from train.ssl.algorithms.freematch import FreeMatch
from train.ssl.algorithms.pseudo_label import PseudoLabel
from train.ssl.algorithms.softmatch import SoftMatch
from train.ssl.algorithms.supervised import Supervised
from train.ssl.algorithms.uda import UDA

ALGORITHMS: dict[str, Any] = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "uda": UDA,
    "fixmatch": FixMatch,
    "flexmatch": FlexMatch,
    "softmatch": SoftMatch,
    "freematch": FreeMatch,
}


def algorithm(name: str, **options: Any) -> Algorithm:
    """The algorithm of this name, with those options that are given (not None).

    Raises:
        ValueError: the algorithm has no such option.
    """
    chosen = ALGORITHMS[name]
    known = [field.name for field in dataclasses.fields(chosen)]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in known:
            listed = f"It has {', '.join(known)}." if known else "It has none."
            raise ValueError(f"{key} is no setting of {name}. {listed}")
    return chosen(**given)
