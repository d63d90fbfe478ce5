"""Losses for networks whose Lipschitz constant is known.

Labels are 0 and 1 or -1 and 1 where there is one output, and one-hot or integers where there is one output a class.

The functions give terms per sample, whose reduction is the caller's; the classes are what `compile` takes.
"""

from deel_like_lip.losses.certified import EMMA, GloRo, emma_terms, gloro_logits, gloro_terms
from deel_like_lip.losses.cross_entropy import (
    LogitAnnealing,
    OffsetCategoricalCrossentropy,
    TauBinaryCrossentropy,
    TauCategoricalCrossentropy,
    TauSparseCategoricalCrossentropy,
    cross_entropy_terms,
    logit_annealing_terms,
    offset_cross_entropy_terms,
)
from deel_like_lip.losses.hkr import (
    KR,
    HingeKR,
    HingeKRLoss,
    HingeMargin,
    MulticlassHinge,
    MulticlassHKR,
    MulticlassKR,
    hinge_terms,
    kr_terms,
)
from deel_like_lip.losses.margin import CategoricalHinge, MultiMargin, categorical_hinge_terms, multi_margin_terms
from deel_like_lip.losses.soft_hkr import (
    LseHKRMulticlass,
    LseHKRMulticlassLoss,
    SoftHKRMulticlass,
    SoftHKRMulticlassLoss,
    lse_hkr_terms,
    soft_hkr_terms,
)

__all__ = [
    "EMMA",
    "KR",
    "CategoricalHinge",
    "GloRo",
    "HingeKR",
    "HingeKRLoss",
    "HingeMargin",
    "LogitAnnealing",
    "LseHKRMulticlass",
    "LseHKRMulticlassLoss",
    "MultiMargin",
    "MulticlassHKR",
    "MulticlassHinge",
    "MulticlassKR",
    "OffsetCategoricalCrossentropy",
    "SoftHKRMulticlass",
    "SoftHKRMulticlassLoss",
    "TauBinaryCrossentropy",
    "TauCategoricalCrossentropy",
    "TauSparseCategoricalCrossentropy",
    "categorical_hinge_terms",
    "cross_entropy_terms",
    "emma_terms",
    "gloro_logits",
    "gloro_terms",
    "hinge_terms",
    "kr_terms",
    "logit_annealing_terms",
    "lse_hkr_terms",
    "multi_margin_terms",
    "offset_cross_entropy_terms",
    "soft_hkr_terms",
]
