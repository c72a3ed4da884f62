"""Semi-supervised algorithms. Each is a module with one class: its options, state and loss.

The name of an algorithm is that of its module, and the fields that it declares with `option` are
options of the commands. A new algorithm therefore needs a new file here, and nothing else.
"""

import dataclasses
import importlib
import pkgutil
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from train.run.settings import Checked
from train.ssl.algorithms.base import Algorithm as Algorithm
from train.ssl.algorithms.base import Pseudo as Pseudo
from train.ssl.algorithms.base import Views as Views


def _algorithm_in(name: str) -> Any:
    module = importlib.import_module(f"{__name__}.{name}")
    # The one class that the module defines itself and that can make a step.
    (kind,) = (
        member
        for member in vars(module).values()
        if hasattr(member, "step") and member.__module__ == module.__name__
    )
    return kind


ALGORITHMS: dict[str, Any] = {
    module.name: _algorithm_in(module.name)
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
}


def _options() -> dict[str, str]:
    """The help text of each option, by name: what it means in each algorithm that has it."""
    # Algorithms may share an option with different meanings and defaults.
    texts: dict[str, list[str]] = {}
    for name, kind in ALGORITHMS.items():
        for field in dataclasses.fields(kind):
            if "option" in field.metadata:
                text = f"{name}: {field.metadata['option']} ({field.default} if not given)."
                texts.setdefault(field.name, []).append(text)
    return {name: " ".join(parts) for name, parts in texts.items()}


OPTIONS = _options()

# Type checkers cannot follow names that are read from a folder.
if TYPE_CHECKING:
    AlgorithmName = str

    class AlgorithmOptions(Checked):
        """The options of all algorithms; None stands for the default of the chosen one."""
else:
    AlgorithmName = Literal[*ALGORITHMS]
    AlgorithmOptions = dataclasses.make_dataclass(
        "AlgorithmOptions",
        [(name, Annotated[float | None, Doc(text)], None) for name, text in OPTIONS.items()],
        bases=(Checked,),
        frozen=True,
    )


def algorithm(name: str, **options: Any) -> Algorithm:
    """The algorithm of this name with the options that are given (not None).

    Raises:
        ValueError: the algorithm does not have an option, or refuses its value.
    """
    kind = ALGORITHMS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in known:
            listed = f"It has {', '.join(known)}." if known else "It has none."
            raise ValueError(f"{key} is no setting of {name}. {listed}")
    return kind(**given)
