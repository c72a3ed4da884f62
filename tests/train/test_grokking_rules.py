"""The rules about grokking, on courses that are made up."""

import math

import pytest

from train.modular import rules

EVENTS = 12


def made(seed=0, **changes):
    """A network that memorises at step 100, comes at 600 and generalises at 800."""
    columns = {
        "train_accuracy": [0.0] + [1.0] * 11,
        "test_accuracy": [0, 0, 0, 0, 0, 0.05, 0.2, 0.6, 0.95, 1, 1, 1],
        "test_mir": [0.5, 0.13, 0.12, 0.12, 0.12, 0.13, 0.2, 0.25, 0.29, 0.3, 0.3, 0.3],
        "test_mir_standard_error": [0.003] * EVENTS,
        "test_hdr": [0.8, 0.1, 0.06, 0.05, 0.04, 0.05, 0.1, 0.15, 0.1, 0.01, 0, 0],
        "test_mir_debiased": [0.3, 0, 0.01, 0, 0.02, 0.04, 0.1, 0.2, 0.3, 0.3, 0.3, 0.3],
        "test_mir_debiased_standard_error": [0.003] * EVENTS,
        "test_spectral_entropy": [0.9, 0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3, 0.3],
        **changes,
    }
    return [
        {"step": 100 * i, "seed": seed, **{k: v[i] for k, v in columns.items()}}
        for i in range(EVENTS)
    ]


def rows(main, **kinds):
    table = rules.rules_table(main, kinds)
    return {row[0]: row[1:] for row in table.rows}


def test_what_was_seen_holds():
    never = {"test_accuracy": [0.0] * EVENTS}
    controls = {
        "random-labels, fraction 0.3": made(**never),
        # Neither memorised nor about to generalise, and no control.
        "no-decay, fraction 0.3": made(**never, train_accuracy=[0.5] * EVENTS),
        "+MI, fraction 0.3": made(**never),
    }
    found = rows(made(), **controls)
    assert found["1. MIR of the test pairs is up"] == (
        "1 of 1",
        "0.120 before, 0.290 at 0.9; 0 down",
    )
    assert found["2. HDR of the test pairs has a hump"] == (
        "1 of 1",
        "0.040 lowest before, 0.150 highest, 0.003 at the end",
    )
    # From step 400 on, and not at 200 alone.
    assert found["3. debiased MIR announces, test pairs"] == (
        "1 of 1",
        "200 steps before accuracy 0.1",
    )
    assert found["3. debiased MIR announces, unmirrored pairs"][0] == "0 of 0"
    alarms = {name: row for name, row in found.items() if name.startswith("4.")}
    assert alarms == {"4. false alarm, test pairs: random-labels, fraction 0.3": ("1 of 1", "400")}
    assert found["5. spectral entropy falls below 0.61"] == (
        "1 of 1",
        "300 steps before accuracy 0.9",
    )


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        # As published.
        ({"test_mir": [0.5] * 6 + [0.4, 0.4, 0.3, 0.3, 0.3, 0.3]}, "1. MIR"),
        # Within three errors.
        ({"test_mir_standard_error": [0.06] * EVENTS}, "1. MIR"),
        ({"test_hdr": [0.8, 0.1, 0.06, 0.05, 0.04, 0.05, 0.07, 0.05, 0, 0, 0, 0]}, "2. HDR"),
        ({"test_hdr": [0.8, 0.1, 0.06, 0.05, 0.04, 0.05, 0.1, 0.15, 0.1, 0.1, 0.1, 0.1]}, "2. HDR"),
        # A spike before test accuracy comes is none at the transition.
        ({"test_hdr": [0.8, 0.1, 0.5, 0.05, 0.04, 0.05, 0, 0, 0, 0, 0, 0]}, "2. HDR"),
        ({"test_mir_debiased": [0] * 6 + [0.1] * 6}, "3. debiased MIR announces, test"),
        ({"test_mir_debiased": [0.1] * 11 + [0.005]}, "3. debiased MIR announces, test"),
        ({"test_mir_debiased": [0.1] * 9 + [None] + [0.1] * 2}, "3. debiased MIR announces, test"),
        ({"test_spectral_entropy": [0.9] * 8 + [0.3] * 4}, "5. spectral entropy falls"),
        ({"test_spectral_entropy": [0.7] * EVENTS}, "5. spectral entropy falls"),
    ],
)
def test_what_does_not_hold(changes, rule):
    ((count, _),) = (v for k, v in rows(made(**changes)).items() if k.startswith(rule))
    assert count == "0 of 1"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"test_mir": [0.5] * 8 + [None] * 4}, "1. MIR"),
        ({"test_mir_standard_error": [None] * EVENTS}, "1. MIR"),
        ({"test_hdr": [0.1] * 11 + [None]}, "2. HDR"),
        ({"test_hdr": [0.0] * EVENTS}, "2. HDR"),
        ({"test_spectral_entropy": [None] * EVENTS}, "5. spectral entropy falls"),
        # It generalises at the event after memorisation, and there is none in between.
        ({"test_accuracy": [0.0, 0.5] + [0.95] * 10}, "1. MIR"),
        ({"test_accuracy": [0.0, 0.5] + [0.95] * 10}, "3. debiased MIR announces, test"),
    ],
)
def test_what_cannot_be_told(changes, rule):
    ((count, _),) = (v for k, v in rows(made(**changes)).items() if k.startswith(rule))
    assert count == "0 of 0"


def test_unmirrored_pairs_have_their_own_accuracy():
    own = {
        "unmirrored_accuracy": [0] * 8 + [0.5] * 4,
        "unmirrored_mir_debiased": [0] * 3 + [0.1] * 9,
        "unmirrored_mir_debiased_standard_error": [0.003] * EVENTS,
    }
    late = own | {"unmirrored_mir_debiased": [0] * EVENTS}
    found = rows([*made(**own), *made(seed=1, **late)])
    assert found["3. debiased MIR announces, unmirrored pairs"] == (
        "1 of 2",
        "500 steps before accuracy 0.1",
    )
    # Accuracy that never comes is announced by nothing.
    never = made(**own | {"unmirrored_accuracy": [0] * EVENTS})
    assert rows(never)["3. debiased MIR announces, unmirrored pairs"][0] == "0 of 0"


def test_only_networks_that_memorise_first_count():
    at_once = made(seed=1, test_accuracy=[0, 1] + [1] * 10)
    never = made(seed=2, test_accuracy=[0.0] * EVENTS)
    assert len(rules.courses([*made(), *at_once, *never])) == 1
    table = rules.rules_table([*made(), *at_once, *never], {})
    assert "1 of 3 seeds that memorise" in table.title
    empty = rules.rules_table(never, {})
    assert all(row[1] == "0 of 0" for row in empty.rows)
    assert rules.turns_table(never).rows


def test_a_threshold_is_judged_on_the_seed_that_it_does_not_come_from(monkeypatch):
    monkeypatch.setattr(rules, "AHEAD", 400)
    # Each generalises at 800; at 400 the entropies of the others are 0.65 and 0.75.
    other = [x + 0.1 for x in (0.9, 0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3, 0.3)]
    main = [*made(), *made(seed=1, test_spectral_entropy=other)]
    # The first falls below 0.75 at 300, the second below 0.65 at 600.
    assert rules.predictions(rules.courses(main)) == [(700, 800), (1000, 800)]
    assert rules.predictions(rules.courses(made())) == []
    assert math.isinf(rules.crossing(made(), 0.1))


def test_turns():
    table = rules.turns_table([*made(), *made(seed=1, test_hdr=[0.5] * 3 + [0.01] * 9)])
    turns = {row[0]: row[1:] for row in table.rows}
    assert turns["test accuracy 0.1"] == ("600 ± 0", "2", "0 of 2")
    assert turns["HDR of the test pairs, lowest before 0.1"] == ("350 ± 71", "2", "2 of 2")
    assert turns["debiased MIR of the test pairs, alarm"] == ("400 ± 0", "2", "2 of 2")
    assert turns["test loss, highest"] == ("-", "0", "0 of 2")
