"""The values that metrics have at neural collapse."""

from mirjax import theory


def closed_forms(num_classes: int) -> dict[str, float]:
    """The value of each metric at neural collapse, for pictures and tables."""
    entropy = theory.collapsed_entropy(num_classes)
    mir = theory.collapsed_mir(num_classes)
    # Differences and deviations, all of which vanish.
    zeros = ("hdr", "hdr_batch", "class_hdr", "hdr_debiased", "entropy_difference")
    zeros += (
        "hdr_debiased_batch",
        "nc1",
        "nc2_equinorm",
        "nc2_equiangle",
        "nc3",
        "nc2_equinorm_head",
        "nc2_equiangle_head",
    )
    return dict.fromkeys(zeros, 0.0) | {
        "mir": mir,
        "class_mir": mir,
        "mir_debiased": theory.collapsed_mir(num_classes, order=2),
        "mir_debiased_batch": theory.collapsed_mir(num_classes, order=2),
        "entropy1": entropy,
        "entropy2": entropy,
        "mutual_information": theory.collapsed_mutual_information(num_classes),
        "joint_entropy": 2 * entropy - theory.collapsed_mutual_information(num_classes),
        "nc4": 1.0,
    }
