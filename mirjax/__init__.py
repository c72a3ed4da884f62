"""Matrix-information metrics and losses for JAX: matrix entropy, MI, MIR and HDR.

Song et al., "Unveiling the Dynamics of Information Interplay in Supervised Learning", ICML 2024
(arXiv 2406.03999). Samples are rows: features `[n, d]`, head `[num_classes, d]`, labels `[n]`.
"""

from importlib.metadata import PackageNotFoundError, version

from mirjax import losses as losses
from mirjax import spectra as spectra
from mirjax import theory as theory
from mirjax import tokens as tokens
from mirjax._batch.chance import ChanceInterplay as ChanceInterplay
from mirjax._batch.chance import chance_interplay as chance_interplay
from mirjax._batch.collapse import ClassMeans as ClassMeans
from mirjax._batch.collapse import NeuralCollapse as NeuralCollapse
from mirjax._batch.collapse import class_means as class_means
from mirjax._batch.collapse import neural_collapse as neural_collapse
from mirjax._batch.debiased import DebiasedInterplay as DebiasedInterplay
from mirjax._batch.debiased import debiased_feature_interplay as debiased_feature_interplay
from mirjax._batch.debiased import debiased_interplay as debiased_interplay
from mirjax._batch.entropy import effective_rank as effective_rank
from mirjax._batch.entropy import feature_entropy as feature_entropy
from mirjax._batch.entropy import matrix_entropy as matrix_entropy
from mirjax._batch.gram import gram as gram
from mirjax._batch.gram import normalize_rows as normalize_rows
from mirjax._batch.interplay import class_interplay as class_interplay
from mirjax._batch.interplay import feature_interplay as feature_interplay
from mirjax._batch.interplay import interplay as interplay
from mirjax._batch.kernels import Interplay as Interplay
from mirjax._batch.kernels import hdr as hdr
from mirjax._batch.kernels import kernel_interplay as kernel_interplay
from mirjax._batch.kernels import mir as mir
from mirjax._batch.kernels import mutual_information as mutual_information
from mirjax._batch.layers import layerwise as layerwise
from mirjax._checks import check as check
from mirjax._dataset.bias import BatchBias as BatchBias
from mirjax._dataset.bias import batch_bias as batch_bias
from mirjax._dataset.dataset import dataset_feature_interplay as dataset_feature_interplay
from mirjax._dataset.dataset import dataset_interplay as dataset_interplay
from mirjax._dataset.debiased import dataset_debiased_interplay as dataset_debiased_interplay
from mirjax._dataset.moments import ClassMoments as ClassMoments
from mirjax._dataset.moments import Entropies as Entropies
from mirjax._dataset.pair_moments import PairMoments as PairMoments
from mirjax._dataset.result import DatasetInterplay as DatasetInterplay

try:
    __version__ = version("mirjax")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "BatchBias",
    "ChanceInterplay",
    "ClassMeans",
    "ClassMoments",
    "DatasetInterplay",
    "DebiasedInterplay",
    "Entropies",
    "Interplay",
    "NeuralCollapse",
    "PairMoments",
    "batch_bias",
    "chance_interplay",
    "check",
    "class_interplay",
    "class_means",
    "dataset_debiased_interplay",
    "dataset_feature_interplay",
    "dataset_interplay",
    "debiased_feature_interplay",
    "debiased_interplay",
    "effective_rank",
    "feature_entropy",
    "feature_interplay",
    "gram",
    "hdr",
    "interplay",
    "kernel_interplay",
    "layerwise",
    "losses",
    "matrix_entropy",
    "mir",
    "mutual_information",
    "neural_collapse",
    "normalize_rows",
    "spectra",
    "theory",
    "tokens",
]
