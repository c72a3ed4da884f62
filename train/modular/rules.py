"""Rules about the course of grokking, by which a run says whether an observation holds.

They were made from one network of the published size (modulus 113, 30 % of the pairs, seed 7) and
are for other seeds, fractions and operations. Of a network only what happens from memorisation on
counts, and only networks that memorise before they generalise. A network of which a rule cannot
tell, because a value is missing or no event lies in between, is left out of its count.

1. Up: MIR of the test pairs is higher when test accuracy first reaches 0.9 than before, by more
   than three standard errors of the estimate. Before is the median over the events from
   memorisation until test accuracy comes, that is, first reaches 0.1.
2. Hump: HDR of the test pairs, from the last event before test accuracy comes to the first one at
   which it is 0.99 (or to the end), is somewhere at least twice as high as at its lowest before,
   and twice as high as at the end (the mean of the last three events).
3. Announced: debiased MIR of the test pairs is above three of its standard errors at some event
   and all later ones, and the first of these events is earlier than the one at which test accuracy
   comes. The same of the unmirrored pairs and their own accuracy.
4. False alarm: debiased MIR does so in a control that memorises and does not generalise within the
   run. Where there is one, 3 is no announcement.
5. Entropy: the normalised spectral entropy of the test pairs is below 0.61 at some event from
   memorisation on and before test accuracy is 0.9 (arXiv 2604.13123; about 1,020 steps before).
   What a threshold predicts is judged on seeds that it does not come from: for each seed, the
   threshold is the mean over the others of the entropy 1,000 steps before they generalise, and the
   prediction is 1,000 steps after the seed falls below it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from train.modular.course import (
    GENERALISED,
    MEASURES,
    MEMORISED,
    by_seed,
    first_step,
    reached,
)
from train.modular.settings import CONTROLS
from train.reporting.records import Record, cell_of_steps, mean_and_spread
from train.reporting.summary import Table

COMES, FULL = 0.1, 0.99
ERRORS = 3.0
TWICE = 2.0
ENTROPY, AHEAD = 0.61, 1000


class Course(NamedTuple):
    """The records of a network that memorises before it generalises, and the events in between.

    Attributes:
        records: from memorisation on.
        comes: the step at which test accuracy is first 0.1.
        generalised: the step at which it is first 0.9.
    """

    records: Sequence[Record]
    comes: float
    generalised: float

    def before(self) -> list[Record]:
        """The records from memorisation until test accuracy comes."""
        return [r for r in self.records if r["step"] < self.comes]

    def values(self, metric: str) -> np.ndarray:
        """The values of a metric; NaN where it is missing."""
        return _values(self.records, metric)


def courses(records: Sequence[Record]) -> list[Course]:
    """The courses of all seeds that memorise before they generalise."""
    found = []
    for of_seed in by_seed(records):
        memorised = first_step(of_seed, "train_accuracy", MEMORISED)
        generalised = first_step(of_seed, "test_accuracy", GENERALISED)
        if memorised < generalised < math.inf:
            later = [r for r in of_seed if r["step"] >= memorised]
            found.append(Course(later, first_step(later, "test_accuracy", COMES), generalised))
    return found


def rises(course: Course) -> tuple[int, float, float] | None:
    """Rule 1: 1 for up, -1 for down, 0 for neither, and the levels before and when generalised."""
    before = _values(course.before(), "test_mir")
    if not len(before):
        return None
    now = [r for r in course.records if r["step"] == course.generalised]
    (value,), (error,) = _values(now, "test_mir"), _values(now, "test_mir_standard_error")
    level = float(np.median(before))
    if not math.isfinite(value + level + error):
        return None
    change = value - level
    return int(change > ERRORS * error) - int(change < -ERRORS * error), level, float(value)


def hump(course: Course) -> tuple[bool, float, float, float] | None:
    """Rule 2: whether there is one, and HDR at its lowest before, its highest, and at the end."""
    before = course.before()
    if not before:
        return None
    full = first_step(course.records, "test_accuracy", FULL)
    around = [r for r in course.records if before[-1]["step"] <= r["step"] <= full]
    lowest = float(np.min(_values(before, "test_hdr")))
    highest = float(np.max(_values(around, "test_hdr")))
    end = float(np.mean(course.values("test_hdr")[-3:]))
    if not math.isfinite(lowest + highest + end) or highest == 0:
        return None
    return highest >= TWICE * max(lowest, end), lowest, highest, end


def alarm(records: Sequence[Record], split: str) -> float:
    """Rules 3 and 4: the event from which debiased MIR is above three errors; infinity if none."""
    start = first_step(records, "train_accuracy", MEMORISED)
    later = [r for r in records if r["step"] >= start]
    values = _values(later, f"{split}_mir_debiased")
    above = values > ERRORS * _values(later, f"{split}_mir_debiased_standard_error")
    if not len(above) or not above[-1]:
        return math.inf
    below = np.flatnonzero(~above)
    return later[int(below[-1]) + 1 if len(below) else 0]["step"]


def crossing(records: Sequence[Record], threshold: float) -> float:
    """Rule 5: the first event after memorisation with an entropy below this; infinity if none."""
    start = first_step(records, "train_accuracy", MEMORISED)
    later = [r for r in records if r["step"] >= start]
    below = np.flatnonzero(_values(later, "test_spectral_entropy") < threshold)
    return later[int(below[0])]["step"] if len(below) else math.inf


def predictions(found: Sequence[Course]) -> list[tuple[float, float]]:
    """Rule 5: the predicted and the true step of generalisation of each seed, from the others."""
    pairs = []
    # A network that generalises soon has no event so far ahead.
    known = [c for c in found if math.isfinite(_entropy_ahead(c))]
    for left_out in known if len(known) > 1 else ():
        levels = [_entropy_ahead(c) for c in known if c is not left_out]
        step = crossing(left_out.records, float(np.mean(levels)))
        pairs.append((step + AHEAD, left_out.generalised))
    return pairs


def _entropy_ahead(course: Course) -> float:
    early = [r for r in course.records if r["step"] <= course.generalised - AHEAD]
    return float(_values(early, "test_spectral_entropy")[-1]) if early else math.nan


def rules_table(main: Sequence[Record], kinds: Mapping[str, Sequence[Record]]) -> Table:
    """What the rules say of the main runs, and how often there is a false alarm in the others."""
    found = courses(main)
    count = f"{len(found)} of {len(by_seed(main))}"
    rows = [_row_up(found), _row_hump(found)]
    splits = {"test": "test pairs", "unmirrored": "unmirrored pairs"}
    rows += [_row_alarm(found, split, name) for split, name in splits.items()]
    for kind, records in kinds.items():
        # Another run that does not generalise may be about to.
        for split, name in splits.items() if kind.startswith(CONTROLS) else ():
            still = [
                of_seed
                for of_seed in by_seed(records)
                if math.isinf(first_step(of_seed, "test_accuracy", GENERALISED))
                and math.isfinite(first_step(of_seed, "train_accuracy", MEMORISED))
                and any(r.get(f"{split}_mir_debiased") is not None for r in of_seed)
            ]
            alarms = [alarm(of_seed, split) for of_seed in still]
            ringing = [step for step in alarms if math.isfinite(step)]
            if still:
                rule = f"4. false alarm, {name}: {kind}"
                rows.append((rule, _of(ringing, still), cell_of_steps(ringing)))
    rows += [_row_entropy(found), _row_prediction(found)]
    title = (
        f"Rules (`train/modular/rules.py`), in the {count} seeds that memorise before they "
        "generalise; alarms of controls are counted where test accuracy stays below "
        f"{GENERALISED:g}"
    )
    return Table(title, ("rule", "holds in", "measured"), tuple(rows))


def turns_table(main: Sequence[Record]) -> Table:
    """When each measure begins to move and turns, beside the coming of test accuracy."""
    found = courses(main)

    def extreme(metric: str, of: Callable[[np.ndarray], int], until: str) -> list[float]:
        steps = []
        for course in found:
            rows = course.before() if until == "comes" else course.records
            values = _values(rows, metric)
            known = len(values) and not np.any(np.isnan(values))
            steps.append(rows[int(of(values))]["step"] if known else math.nan)
        return steps

    marks: dict[str, list[float]] = {
        "test accuracy 0.1": [c.comes for c in found],
        "test accuracy 0.9": [c.generalised for c in found],
        "test loss, highest": extreme("test_loss", np.argmax, "end"),
        "MIR of the test pairs, lowest before 0.1": extreme("test_mir", np.argmin, "comes"),
        "HDR of the test pairs, lowest before 0.1": extreme("test_hdr", np.argmin, "comes"),
        "weight norm, highest": extreme("weight_norm", np.argmax, "end"),
        "debiased MIR of the test pairs, alarm": [alarm(c.records, "test") for c in found],
        "debiased MIR, unmirrored, alarm": [alarm(c.records, "unmirrored") for c in found],
        "spectral entropy below 0.61": [crossing(c.records, ENTROPY) for c in found],
    }
    for metric, name in MEASURES.items():
        marks[f"{name}, a tenth of its way"] = [reached(c.records, metric, 0.1) for c in found]
    rows = []
    for name, steps in marks.items():
        known = [step for step in steps if math.isfinite(step)]
        earlier = [c for c, step in zip(found, steps, strict=True) if step < c.comes]
        rows.append((name, cell_of_steps(known), f"{len(known)}", _of(earlier, found)))
    title = (
        "Turns: steps (mean ± standard deviation over the seeds that have one), and in how many "
        "seeds before test accuracy 0.1"
    )
    return Table(title, ("measure", "step", "seeds", "earlier"), tuple(rows))


def _row_up(found: Sequence[Course]) -> tuple[str, str, str]:
    known = [x for x in map(rises, found) if x is not None]
    down = sum(sign < 0 for sign, *_ in known)
    text = f"{_cell(x[1] for x in known)} before, {_cell(x[2] for x in known)} at 0.9; {down} down"
    return "1. MIR of the test pairs is up", _of([x for x in known if x[0] > 0], known), text


def _row_hump(found: Sequence[Course]) -> tuple[str, str, str]:
    known = [x for x in map(hump, found) if x is not None]
    names = ("lowest before", "highest", "at the end")
    levels = (f"{_cell(x[i] for x in known)} {name}" for i, name in enumerate(names, 1))
    return (
        "2. HDR of the test pairs has a hump",
        _of([x for x in known if x[0]], known),
        ", ".join(levels),
    )


def _row_alarm(found: Sequence[Course], split: str, name: str) -> tuple[str, str, str]:
    accuracy = f"{split}_accuracy"
    leads = []
    for course in found:
        known = all(r.get(accuracy) is not None for r in course.records)
        comes = first_step(course.records, accuracy, COMES) if known else math.inf
        # Where accuracy comes with memorisation there is nothing to announce.
        if course.records[0]["step"] < comes < math.inf:
            leads.append(comes - alarm(course.records, split))
    early = [lead for lead in leads if lead > 0]
    # Late ones count in the mean, and those without any alarm do not.
    text = (
        f"{cell_of_steps([x for x in leads if math.isfinite(x)])} steps before accuracy {COMES:g}"
    )
    return f"3. debiased MIR announces, {name}", _of(early, leads), text


def _row_entropy(found: Sequence[Course]) -> tuple[str, str, str]:
    known = [c for c in found if np.all(np.isfinite(c.values("test_spectral_entropy")))]
    leads = [c.generalised - crossing(c.records, ENTROPY) for c in known]
    early = [lead for lead in leads if math.isfinite(lead) and lead > 0]
    text = f"{cell_of_steps(early)} steps before accuracy {GENERALISED:g}"
    return f"5. spectral entropy falls below {ENTROPY:g}", _of(early, known), text


def _row_prediction(found: Sequence[Course]) -> tuple[str, str, str]:
    pairs = predictions(found)
    known = [(mine, true) for mine, true in pairs if math.isfinite(mine)]
    errors = [abs(mine - true) for mine, true in known]
    shares = [abs(mine - true) / true for mine, true in known]
    text = "-"
    if known:
        text = f"off by {cell_of_steps(errors)} steps, {100 * np.mean(shares):.0f} % of the step"
    return "5. a threshold from the other seeds is crossed", _of(known, pairs), text


def _values(records: Sequence[Record], metric: str) -> np.ndarray:
    # What is not finite is read as None.
    values = [r.get(metric) for r in records]
    return np.asarray([math.nan if v is None else v for v in values], float)


def _of(some: Sequence, of: Sequence) -> str:
    return f"{len(some)} of {len(of)}"


def _cell(values: Iterable[float]) -> str:
    values = list(values)
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    # A single seed has no spread.
    return f"{mean:.3f} ± {spread:.3f}" if len(values) > 1 else f"{mean:.3f}"
