"""Random layers and mutated certificates are refused or right: `benchmarks/fuzz.py` in small."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from benchmarks import fuzz

layers = lip.layers


def test_configurations():
    counts, failures = fuzz.fuzz(fuzz.configurations(), fuzz.check_configuration, 40)
    print(counts)
    assert not failures, failures[0]
    assert counts["right"] >= 10


def test_mutations():
    counts, failures = fuzz.fuzz(fuzz.mutations(), fuzz.check_mutation, 1000)
    print(counts)
    assert not failures, failures[0]
    assert sum(counts.values()) == 1000
    assert len(counts) == 5  # every outcome


def test_every_layer_is_fuzzed():
    kinds = {value for name in layers.__all__ if isinstance(value := getattr(layers, name), type)}
    assert {getattr(layers, name) for name in fuzz.LAYERS} == kinds - {layers.LipschitzLayer}


def test_faults_are_found(monkeypatch):
    """A constant that is too small, a fold that computes something else, an error of another kind, a blind `verify`."""
    dense = fuzz.Configuration(fuzz.Spec("SpectralDense", {"units": 3}), (3,), "random")
    assert fuzz.check_configuration(dense) == "right"
    certify, fold = lip.certify, lip.vanilla_model

    def optimistic(model, **options):
        certificate = certify(model, **options)
        return dataclasses.replace(certificate, lipschitz_constant=0.2 * certificate.lipschitz_constant)

    with monkeypatch.context() as patch:
        patch.setattr(lip, "certify", optimistic)
        with pytest.raises(AssertionError, match="certified"):
            fuzz.check_configuration(dense)
    with monkeypatch.context() as patch:
        patch.setattr(lip, "vanilla_model", lambda model: lambda inputs: fold(model)(inputs) + 0.1)
        with pytest.raises(AssertionError, match="fold"):
            fuzz.check_configuration(dense)
    with monkeypatch.context() as patch:
        patch.setattr(layers.SpectralDense, "build", lambda self, shape: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fuzz.check_configuration(dense)
    monkeypatch.setattr(lip.Certificate, "verify", lambda self, model, **options: None)
    fields = json.loads(fuzz.subjects()[0].certificate.to_json())
    fields["heads"][0]["pair_constants"] = (0.9 * np.array(fields["heads"][0]["pair_constants"])).tolist()
    with pytest.raises(AssertionError, match="above"):
        fuzz.check_mutation((0, "intent", fuzz.signed(fields).encode()))
    with pytest.raises(AssertionError, match="an edited certificate was read"):
        fuzz.check_mutation((0, "accident", fuzz.signed(fields).encode()))


# --- what it has found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (lambda: layers.LipConv2D(2, 3), (4, 4, None), "whose number of channels is known"),
        (lambda: layers.LipDepthwiseConv2D(3), (4, 4, None), "whose number of channels is known"),
        (lambda: layers.SpectralDense(4, parametrization="exponential"), (None,), "whose last axis is known"),
        (
            lambda: layers.ConcatResidual([layers.LipConv2D(2, 3, padding="circular"), layers.MaxMin()]),
            (4,),
            "expects a 4D input",
        ),
    ],
)
def test_inputs_of_a_kind_that_a_layer_does_not_take(layer, shape, words):
    with pytest.raises(ValueError, match=words):
        layer()(keras.Input(shape))
