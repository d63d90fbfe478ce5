"""Losses for networks whose Lipschitz constant is known.

Labels are 0 and 1 or -1 and 1 where there is one output, and one-hot or integers where there is one output a class.

The functions give terms per sample, whose reduction is the caller's; the classes are what `compile` takes.
"""

from deel_like_lip.losses.cross_entropy import (
    TauBinaryCrossentropy,
    TauCategoricalCrossentropy,
    TauSparseCategoricalCrossentropy,
    cross_entropy_terms,
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

__all__ = [
    "KR",
    "HingeKR",
    "HingeKRLoss",
    "HingeMargin",
    "MulticlassHKR",
    "MulticlassHinge",
    "MulticlassKR",
    "TauBinaryCrossentropy",
    "TauCategoricalCrossentropy",
    "TauSparseCategoricalCrossentropy",
    "cross_entropy_terms",
    "hinge_terms",
    "kr_terms",
]
