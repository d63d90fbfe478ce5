"""Keras layers and losses for networks whose Lipschitz constant is known."""

from deel_like_lip import (
    bounds,
    callbacks,
    constraints,
    initializers,
    layers,
    losses,
    metrics,
    models,
    parametrizations,
    regularizers,
    schedules,
)
from deel_like_lip._version import __version__
from deel_like_lip.certificates import Certificate, CertificateError, certify
from deel_like_lip.containers import Model, Sequential
from deel_like_lip.empirical import empirical_lipschitz
from deel_like_lip.evaluation import accuracy_under_attack, certified_accuracy, plot_certified_accuracy
from deel_like_lip.export import export_litert, export_onnx, export_saved_model, load_certificate
from deel_like_lip.folding import vanilla_model, vanillaModel
from deel_like_lip.renormalization import renormalize
from deel_like_lip.self_check import BrokenBoundError, SelfCheck

__all__ = [
    "BrokenBoundError",
    "Certificate",
    "CertificateError",
    "Model",
    "SelfCheck",
    "Sequential",
    "__version__",
    "accuracy_under_attack",
    "bounds",
    "callbacks",
    "certified_accuracy",
    "certify",
    "constraints",
    "empirical_lipschitz",
    "export_litert",
    "export_onnx",
    "export_saved_model",
    "initializers",
    "layers",
    "load_certificate",
    "losses",
    "metrics",
    "models",
    "parametrizations",
    "plot_certified_accuracy",
    "regularizers",
    "renormalize",
    "schedules",
    "vanillaModel",
    "vanilla_model",
]
