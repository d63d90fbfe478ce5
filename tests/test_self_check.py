"""The self-check of `certify`: it breaks what is wrong, and lets pass what is right."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import ops

import deel_like_lip as lip
from deel_like_lip import certificates
from deel_like_lip.bounds import CannotBoundError, activations, register_bound_rule, unregister_bound_rule
from deel_like_lip.self_check import BrokenBoundError, self_check
from tests.helpers import to_numpy

layers = lip.layers

pytestmark = pytest.mark.self_check


class Custom(keras.layers.Layer):
    """A layer of a user, whose rule may be wrong. What it computes is set for each test."""

    function = staticmethod(lambda inputs: inputs)

    def call(self, inputs):
        return type(self).function(inputs)


@pytest.fixture
def custom():
    """Returns a function that registers a claim for a layer of a user's, and makes one."""

    def make(claim, function, name="mine"):
        Custom.function = staticmethod(function)
        register_bound_rule(Custom)(lambda layer, input_shape: claim)
        return Custom(name=name)

    yield make
    unregister_bound_rule(Custom)


def net(*middle, shape=(4,), outputs=3):
    return keras.Sequential([keras.Input(shape), *middle, layers.SpectralDense(outputs)])


WRONG = {
    "everywhere": lambda x: 3.0 * x,
    "one direction": lambda x: ops.concatenate([x[:, :1] * 3.0, x[:, 1:]], axis=1),
    "far from zero": lambda x: x + 2.0 * ops.relu(ops.abs(x) - 2.0),
    "a jump": lambda x: ops.floor(10.0 * x) / 10.0,
    "between neighbours": lambda x: 3.0 * (x - ops.roll(x, 1, axis=1)),
}


@pytest.mark.parametrize("function", WRONG.values(), ids=WRONG)
def test_a_rule_that_claims_too_little_is_found(function, custom):
    model = net(layers.SpectralDense(4), custom(1.0, function))
    with pytest.raises(BrokenBoundError, match="has broken its own bound.*Please report it.*inputs") as broken:
        lip.certify(model)
    assert broken.value.found > broken.value.claimed
    first, second = broken.value.inputs
    change = to_numpy(model(first)).astype("float64") - to_numpy(model(second))
    assert np.linalg.norm(change) > 0
    assert lip.certify(model, check=False).checked is None


def test_inputs_of_a_report_contradict_the_bound(custom):
    model = net(custom(1.0, lambda x: 3.0 * x))
    with pytest.raises(BrokenBoundError) as broken:
        lip.certify(model)
    first, second = broken.value.inputs
    change = to_numpy(model(first)).astype("float64") - to_numpy(model(second))
    constant = lip.certify(model, check=False).lipschitz_constant
    assert np.linalg.norm(change) / np.linalg.norm(first.astype("float64") - second) > 2 * constant


def test_where_only_the_data_leads(custom):
    """The slope is where no made-up input is."""
    model = net(custom(1.0, lambda x: x + 5.0 * ops.relu(1.0 - ops.abs(x - 400.0))))
    lip.certify(model)
    data = np.random.default_rng(0).uniform(398, 402, size=(60, 4)).astype("float32")
    with pytest.raises(BrokenBoundError):
        lip.certify(model, data=data)
    with pytest.raises(ValueError, match=r"Expected `data` to be inputs of the model.*Received: data of shapes"):
        lip.certify(model, data=np.zeros((3, 5)))


def test_bounds_of_single_outputs_and_pairs_are_tried():
    model = net(layers.SpectralDense(4))
    certificate = lip.certify(model, check=False)
    plain = lip.vanilla_model(model)
    (head,) = certificate.heads
    for change in (
        {"output_constants": head.output_constants * 0.5},
        {"pair_constants": head.pair_constants * 0.5},
        {"lipschitz_constant": head.lipschitz_constant * 0.5},
    ):
        wrong = dataclasses.replace(certificate, heads=(dataclasses.replace(head, **change),))
        with pytest.raises(BrokenBoundError):
            self_check(model, plain, wrong)
    assert self_check(model, plain, certificate).largest <= 1


def test_a_wrong_constant_of_the_library_is_found(monkeypatch):
    for name, wrong in (("gelu", 0.9), ("sigmoid", 0.1), ("selu", 1.0)):
        monkeypatch.setitem(activations._KNOWN, name, activations.Activation(wrong))
        with pytest.raises(BrokenBoundError):
            lip.certify(keras.Sequential([keras.Input((4,)), keras.layers.Activation(name)]))


def test_a_radius_that_rounding_breaks_is_found(monkeypatch):
    """A rounding error that is left out of the margins: the answer changes within the radius."""
    dense = keras.layers.Dense(2)
    inputs = keras.Input((1,))
    model = keras.Model(inputs, dense(keras.layers.Rescaling(1.0, offset=1e5)(inputs)))
    dense.set_weights([np.array([[1.0, 0.0]]), np.array([-1e5, 0.25])])
    certificate = lip.certify(model, rounding="sound")
    assert certificate.checked is not None
    (head,) = certificate.heads
    none = dataclasses.replace(head, rounding_error=lip.bounds.Affine(0.0, 0.0))
    with pytest.raises(BrokenBoundError, match="broken its own radius: the answer changes at a distance of"):
        self_check(model, lip.vanilla_model(model), dataclasses.replace(certificate, heads=(none,)))


# --- what is bounded is what runs ------------------------------------------------------------------------------------


def test_a_model_that_is_not_its_fold_is_refused():
    layer = layers.SpectralDense(4, name="own")
    model = keras.Sequential([keras.Input((4,)), layer])
    fold = type(layer).fold

    class Other(layers.SpectralDense):
        def call(self, inputs, training=None):
            return super().call(inputs, training) + 0.5 * inputs

        def fold(self):
            return fold(self)

    other = Other(4, name="other")
    model = keras.Sequential([keras.Input((4,)), other])
    with pytest.raises(CannotBoundError, match="not what was bounded: its fold computes something else"):
        lip.certify(model)


def test_samples_that_depend_on_others_are_refused(custom):
    model = net(custom(1.0, lambda x: x - ops.mean(x, axis=0, keepdims=True)))
    with pytest.raises(CannotBoundError, match="outputs of a sample depend on"):
        lip.certify(model)


def test_chance_is_refused():
    class Noise(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.generator = keras.random.SeedGenerator(0)

        def call(self, inputs):
            return inputs + keras.random.normal(ops.shape(inputs), seed=self.generator)

    register_bound_rule(Noise)(lambda layer, input_shape: 1.0)
    try:
        with pytest.raises(CannotBoundError, match="(others of its batch, or on chance|fold computes something else)"):
            lip.certify(net(Noise()))
    finally:
        unregister_bound_rule(Noise)


def test_a_file_that_comes_back_as_something_else_is_refused(monkeypatch):
    model = net(keras.layers.ReLU())
    load = keras.models.load_model

    def other(path, **options):
        found = load(path, **options)
        found.layers[-1].bias.assign(np.ones(3))
        return found

    monkeypatch.setattr(keras.models, "load_model", other)
    with pytest.raises(CannotBoundError, match="after it was saved and loaded"):
        lip.certify(model)


def test_a_file_that_does_not_come_back_deceives_nobody(monkeypatch):
    def fails(path, **options):
        raise OSError("gone")

    monkeypatch.setattr(keras.models, "load_model", fails)
    assert not lip.certify(net()).checked.reloaded


# --- what is right ---------------------------------------------------------------------------------------------------


def siamese():
    """Two branches of large numbers, of which the difference is small."""
    first, second = keras.Input((16,)), keras.Input((16,))
    scaled, random = keras.initializers.VarianceScaling(4.0), keras.initializers.RandomNormal(stddev=30.0)
    hidden = [keras.layers.Dense(64, "relu", kernel_initializer=scaled, bias_initializer=random) for _ in range(3)]
    encode = keras.Sequential([keras.Input((16,)), *hidden])
    return keras.Model([first, second], keras.layers.Dense(3)(keras.layers.Subtract()([encode(first), encode(second)])))


def centred_sums(factor, *after):
    """Sums of values whose mean was taken off: zero but for rounding, and the constant is."""
    sums = keras.layers.Dense(4, kernel_initializer=keras.initializers.Constant(factor))
    return keras.Sequential([keras.Input((4,)), layers.SpectralDense(4), layers.LayerCentering(), sums, *after])


RIGHT = {
    "dense": lambda: net(layers.SpectralDense(8, activation=layers.GroupSort2())),
    "images": lambda: keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.LipConv2D(4, 3, activation=layers.MaxMin()),
            layers.ScaledL2NormPooling2D(2),
            keras.layers.Flatten(),
            layers.SpectralDense(3),
        ]
    ),
    "any size": lambda: keras.Sequential([keras.Input((None, None, 2)), layers.LipConv2D(4, 3), layers.GroupSort2()]),
    "integers": lambda: keras.Sequential(
        [keras.Input((4,), dtype="uint8"), keras.layers.Rescaling(1 / 255), layers.SpectralDense(3)]
    ),
    "one batch": lambda: keras.Sequential([keras.Input(batch_shape=(5, 4)), layers.SpectralDense(3)]),
    "large numbers inside": lambda: keras.Sequential(
        [keras.Input((4,)), keras.layers.Rescaling(1.0, offset=1e7), keras.layers.Activation("softplus")]
    ),
    "huge": lambda: keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(1e30), keras.layers.ReLU()]),
    "tiny": lambda: keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(1e-30), keras.layers.ReLU()]),
    "large numbers that cancel": lambda: siamese(),
    "layers that cancel": lambda: centred_sums(1e3, layers.GroupSort2()),
    "layers that cancel, and much after them": lambda: centred_sums(1e3, keras.layers.Rescaling(1e3)),
    "constant": lambda: keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(0.0), layers.SpectralDense(3)]),
}


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
def test_what_is_right_passes(make):
    certificate = lip.certify(make())
    assert certificate.checked.pairs > 0
    assert 0 <= certificate.checked.largest <= 1
    assert certificate.checked.reloaded


def test_several_inputs_and_outputs():
    first, second = keras.Input((4,), name="first"), keras.Input((3,), name="second")
    joined = keras.layers.Concatenate()([first, second])
    outputs = {"kind": layers.SpectralDense(3)(joined), "alarm": layers.SpectralDense(1)(joined)}
    for inputs in ([first, second], {"first": first, "second": second}):
        model = keras.Model(inputs, outputs)
        assert lip.certify(model, rounding="sound").checked.largest > 0.5
    data = {"first": np.ones((5, 4), "float32"), "second": np.ones((5, 3), "float32")}
    assert lip.certify(model, data=data).checked.pairs > 0


def test_the_search_comes_near_the_bound():
    model = net(layers.SpectralDense(16, activation=layers.GroupSort2()), layers.SpectralDense(16), shape=(12,))
    assert lip.certify(model).checked.largest > 0.9


def test_it_is_recorded(tmp_path):
    model = net()
    certificate = lip.certify(model)
    again = lip.Certificate.from_json(certificate.to_json())
    assert again.checked == certificate.checked
    assert f"Self-check: {certificate.checked.pairs} pairs of inputs" in certificate.summary()
    unchecked = lip.certify(model, check=False)
    assert "Self-check: none" in unchecked.summary()
    assert lip.Certificate.from_json(unchecked.to_json()).checked is None
    unchecked.verify(model)
    fields = json.loads(certificate.to_json())
    assert fields["checked"] == dataclasses.asdict(certificate.checked)
    with pytest.raises(ValueError, match="Expected `check` to be True or False. Received: check='yes'"):
        lip.certify(model, check="yes")


def test_it_does_not_move_the_random_numbers_of_a_training():
    model = net()
    keras.utils.set_random_seed(3)
    lip.vanilla_model(model)
    expected = np.random.uniform(), to_numpy(keras.random.uniform((2,)))
    keras.utils.set_random_seed(3)
    certificates.certify(model)
    found = np.random.uniform(), to_numpy(keras.random.uniform((2,)))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_samples_of_a_fixed_batch_are_put_beside_others(custom):
    """The mean over two samples is the same in whatever order they are."""
    Custom.function = staticmethod(lambda x: x - ops.mean(x, axis=0, keepdims=True))
    layer = custom(1.0, Custom.function)
    with pytest.raises(CannotBoundError, match="outputs of a sample depend on"):
        lip.certify(keras.Sequential([keras.Input(batch_shape=(2, 4)), layer]))
