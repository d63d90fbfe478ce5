"""The public contract: layers that keep it pass, and each way to break it is caught and named."""

import keras
import numpy as np
import pytest
from keras import ops

import deel_like_lip as lip
from deel_like_lip.testing import ContractError, LayerCase, check_layer, check_loads_without_library, layer_checks
from tests.helpers import to_numpy

CHECKS = dict(layer_checks())


@keras.saving.register_keras_serializable("tests")
class Half(lip.layers.LipschitzLayer):
    """A layer of a user: half of the positive part."""

    def call(self, inputs, training=None):
        return self.compute(inputs, training)

    def compute(self, inputs, training):
        return ops.relu(inputs) * (self.k_coef_lip / 2)

    def compute_output_shape(self, input_shape):
        return input_shape

    def fold(self):
        scale = keras.layers.Rescaling(self.k_coef_lip / 2)
        return lambda inputs: scale(keras.layers.ReLU()(inputs))


@keras.saving.register_keras_serializable("tests")
class Scaled(Half):
    """A layer of a user with weights, one of which has to be constrained."""

    constraint = staticmethod(lambda scale: ops.clip(scale, -1.0, 1.0))
    regularizer = None

    def build(self, input_shape):
        self.bias = self.add_weight((input_shape[-1],), name="bias")
        self.scale = self.add_weight((), "ones", name="scale", constraint=self.constraint, regularizer=self.regularizer)

    def compute(self, inputs, training):
        return inputs * (self.scale * self.k_coef_lip) + self.bias

    def fold(self):
        dense = keras.layers.Dense(self.bias.shape[0])
        weights = [np.eye(self.bias.shape[0]) * to_numpy(self.scale) * self.k_coef_lip, to_numpy(self.bias)]

        def folded(inputs):
            outputs = dense(inputs)
            dense.set_weights(weights)
            return outputs

        return folded


class Linear(Half):
    """A layer that multiplies by a factor, for what follows to override."""

    factor = 0.5

    def compute(self, inputs, training):
        return inputs * self.factor

    def fold(self):
        return keras.layers.Rescaling(self.factor)


class TooSteep(Linear):
    factor = 1.001


class TooSteepForItsGradient(Linear):
    factor = 1.1

    def compute(self, inputs, training):
        return 0.5 * inputs + ops.stop_gradient(0.6 * inputs)


class NotProven(Linear):
    """The identity, by a fold of which only the constant 2 is known."""

    factor = 1.0

    def fold(self):
        return lambda inputs: ops.relu(inputs) - ops.relu(-inputs)


class NotBounded(Half):
    def fold(self):
        return lambda inputs: ops.logaddexp(inputs, 0.0)


class GrowsInTraining(Scaled):
    constraint = None
    regularizer = staticmethod(lambda scale: -1000 * scale)


class InfiniteInTraining(Scaled):
    def compute(self, inputs, training):
        return super().compute(inputs, training) + 1e-3 * ops.sqrt(ops.abs(inputs * self.scale))


class DoesNotTrain(Scaled):
    def compute(self, inputs, training):
        return ops.stop_gradient(super().compute(inputs, training)) + 0 * self.scale


class LosesConstant(Half):
    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "k_coef_lip"}


class LosesArgument(Linear):
    def __init__(self, factor=0.5, **options):
        super().__init__(**options)
        self.factor = factor


@keras.saving.register_keras_serializable("tests")
class LosesWeights(Scaled):
    def save_own_variables(self, store):
        store["scale"] = to_numpy(self.scale)

    def load_own_variables(self, store):
        self.scale.assign(store["scale"])


class HasAnotherWeight(lip.layers.SpectralDense):
    def build(self, input_shape):
        super().build(input_shape)
        self.another = self.add_weight((), name="another", trainable=False)


class SaysAnotherShape(Half):
    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 3)


class WantsTwelveSamples(Half):
    def compute(self, inputs, training):
        return ops.reshape(super().compute(inputs, training), (12, -1))


class MixesSamples(Linear):
    def compute(self, inputs, training):
        return 0.5 * (inputs - ops.mean(inputs, axis=0, keepdims=True))


class WantsASample(Half):
    def compute(self, inputs, training):
        if inputs.shape[0] == 0:
            raise ValueError("no sample")
        return super().compute(inputs, training)


class FoldsToSomethingElse(Half):
    def fold(self):
        return keras.layers.Rescaling(0.5)


class FoldsToItself(Half):
    def fold(self):
        return Half()


class FoldsToAnOpOfItsOwn(Half):
    def fold(self):
        class Own(keras.Operation):
            def call(self, inputs):
                return ops.relu(inputs) / 2

            def compute_output_spec(self, inputs):
                return keras.KerasTensor(inputs.shape, inputs.dtype)

        return Own()


class FoldsToLambda(Half):
    def fold(self):
        return keras.layers.Lambda(lambda inputs: keras.ops.relu(inputs) / 2, output_shape=lambda shape: shape)


class SharesItsWeights(Half):
    def build(self, input_shape):
        self.dense = keras.layers.Dense(2)
        self.dense.build(input_shape)

    def compute(self, inputs, training):
        return self.dense(inputs)

    def fold(self):
        return self.dense


class AssignsAtInference(Scaled):
    def compute(self, inputs, training):
        self.bias.assign(self.bias + 1e-3)
        return super().compute(inputs, training)


class CountsCalls(Scaled):
    def build(self, input_shape):
        super().build(input_shape)
        self.calls = self.add_weight((), name="calls", trainable=False)

    def compute(self, inputs, training):
        self.calls.assign(self.calls + 1.0)
        return super().compute(inputs, training)


class OtherInTraining(Half):
    def compute(self, inputs, training):
        return super().compute(inputs, training) * (0.5 if training else 1.0)


class NeedsValues(Half):
    def compute(self, inputs, training):
        return ops.convert_to_tensor(np.maximum(to_numpy(inputs), 0.0) / 2)


class InfiniteGradient(Linear):
    def compute(self, inputs, training):
        return super().compute(inputs, training) + 1e-3 * ops.sqrt(ops.abs(inputs))


class LongGradient(Half):
    """At zero, where the slopes are 0 and 1/2, its gradient is 3/2."""

    def compute(self, inputs, training):
        return super().compute(inputs, training) + 1.5 * inputs * ops.cast(ops.equal(inputs, 0.0), inputs.dtype)


class InfiniteGradientInTraining(Linear):
    def compute(self, inputs, training):
        return super().compute(inputs, training) + (1e-3 * ops.sqrt(ops.abs(inputs)) if training else 0.0)


class LongGradientInTraining(Linear):
    def compute(self, inputs, training):
        factor = 3.0 if training else 0.0
        return super().compute(inputs, training) + factor * (inputs - ops.stop_gradient(inputs))


class LastAxisInAnyCase(Half):
    def __init__(self, data_format=None, **options):
        super().__init__(**options)
        self.data_format = data_format or "channels_last"

    def compute(self, inputs, training):
        return ops.flip(super().compute(inputs, training), axis=-1)

    def fold(self):
        fold = super().fold()
        return lambda inputs: ops.flip(fold(inputs), axis=-1)

    def get_config(self):
        return {**super().get_config(), "data_format": self.data_format}


class AlwaysFloat32(Half):
    def compute(self, inputs, training):
        return super().compute(ops.cast(inputs, "float32"), training)


class ImpreciseInFloat16(Half):
    def compute(self, inputs, training):
        precise = self.compute_dtype == "float32"
        return super().compute(inputs, training) * (1.0 if precise else 1.25)


class AcceptsAnyConstant(Half):
    def __init__(self, k_coef_lip=1.0, **options):
        super().__init__(**options)
        self.k_coef_lip = k_coef_lip


class RefusesWithoutReason(Half):
    def __init__(self, k_coef_lip=1.0, **options):
        try:
            super().__init__(k_coef_lip=k_coef_lip, **options)
        except ValueError:
            raise ValueError("wrong") from None


ONE = Half()

# Check that is to fail, layer or how to make it, words of the message.
BROKEN = [
    ("bound", TooSteep, r"a Jacobian of the layer of norm at most k_coef_lip=1.0. Received: norm 1\.001"),
    ("bound", TooSteepForItsGradient, r"a certified constant of at most k_coef_lip=1.0. Received: 1\.1"),
    ("bound", NotProven, "a certified constant of at most k_coef_lip=1.0. Received: 2"),
    ("bound", NotBounded, "CannotBoundError"),
    ("bound_after_training", GrowsInTraining, r"a Jacobian of the layer of norm at most k_coef_lip=1.0. Received: nor"),
    ("training_steps", InfiniteInTraining, "finite losses. Received: .*nan"),
    ("training_steps", DoesNotTrain, "weights that move|No gradients|does not require grad"),
    ("config", LosesConstant, "k_coef_lip=1.0 in the config"),
    ("config", lambda: LosesArgument(0.25), "the same outputs from a layer of the same config"),
    ("keras_file", LosesWeights, "the same outputs after `save`"),
    ("weights", lambda: HasAnotherWeight(2), r"Received: \['kernel', 'bias', 'another'\]"),
    ("symbolic_input", SaysAnotherShape, r"`compute_output_shape` to return \(None, 2, 4\)"),
    ("symbolic_input", lambda: ONE, "a new layer"),
    ("batch_sizes", WantsTwelveSamples, "Received: .*Error"),
    ("batch_sizes", MixesSamples, "the same output in a batch of 1 samples"),
    ("batch_sizes", WantsASample, "Received: ValueError: .*no sample"),
    ("fold", FoldsToSomethingElse, "the same outputs from the fold"),
    ("fold", FoldsToItself, "built-in layers and ops only"),
    ("fold", FoldsToAnOpOfItsOwn, "built-in layers and ops only"),
    ("fold_shares_nothing", SharesItsWeights, "variables of its own"),
    ("inference", AssignsAtInference, "the outputs of `predict`|variables that stay"),
    ("inference", CountsCalls, "variables that stay"),
    ("training_mode", OtherInTraining, "with training=True"),
    ("jit", NeedsValues, "Received: .*Error"),
    ("gradient", InfiniteGradient, "a finite gradient by the input"),
    (
        "gradient",
        LongGradient,
        r"norm at most k_coef_lip=1.0. Received: norm 1\.5|Received: norm 1\.75|Received: norm 2",
    ),
    ("gradient", InfiniteGradientInTraining, "a finite gradient with training=True"),
    ("gradient", LongGradientInTraining, r"with training=True. Received: 3\.5"),
    ("data_formats", LastAxisInAnyCase, "transposed, from the layer with channels_first"),
    ("mixed_float16", AlwaysFloat32, "outputs of dtype float16 under mixed_float16. Received: float32"),
    ("mixed_bfloat16", AlwaysFloat32, "outputs of dtype bfloat16 under mixed_bfloat16. Received: float32"),
    ("mixed_float16", ImpreciseInFloat16, "near those in float32"),
    (
        "bad_arguments",
        AcceptsAnyConstant,
        "a ValueError that says 'k_coef_lip'.*where k_coef_lip=0. Received: no error",
    ),
    ("bad_arguments", RefusesWithoutReason, "Received: .*ValueError: wrong"),
    ("config", lambda: keras.layers.Dense(2), "Expected a `LipschitzLayer`. Received: <Dense name="),
]


@pytest.mark.parametrize(("name", "make", "words"), BROKEN)
def test_a_broken_layer_is_caught(name, make, words):
    if name == "jit" and keras.backend.backend() == "torch":
        pytest.skip("torch compiles for minutes")
    case = LayerCase(make, (2, 4))
    with pytest.raises(ContractError, match=rf"(?s)^The check '{name}' failed for .*{words}") as caught:
        CHECKS[name](case)
    assert "Received: " in str(caught.value)
    if isinstance(make, type):
        assert f"the {make.__name__} layer '" in str(caught.value)


def test_a_fold_that_needs_more_than_keras_to_load():
    good, bad = LayerCase(Scaled, (4,)), LayerCase(FoldsToLambda, (4,))
    CHECKS["fold"](bad)  # here it works
    with pytest.raises(ContractError, match="(?s)'loads_without_library' failed for the FoldsToLambda.*Lambda"):
        check_loads_without_library([good, bad])


def test_a_layer_of_a_user_passes(monkeypatch):
    loaded = []
    monkeypatch.setattr("deel_like_lip.testing.check_loads_without_library", loaded.extend)  # as tested above
    check_layer(lambda: Scaled(k_coef_lip=2.0), (4,))
    assert [case.layer.k_coef_lip for case in loaded] == [2.0]


def test_all_checks_at_once_find_what_is_broken():
    with pytest.raises(ContractError, match="The check 'bound' failed for the TooSteep layer"):
        check_layer(TooSteep, (4,), skip={"keras_file": "it is not registered"})


def test_what_is_promised_otherwise():
    with pytest.raises(ContractError, match="a Jacobian of the layer of norm at most k_coef_lip=1.0"):
        CHECKS["bound"](LayerCase(lambda: lip.layers.FrobeniusDense(6), (4,)))
    CHECKS["bound"](LayerCase(lambda: lip.layers.FrobeniusDense(6), (4,), per_output=True))
    CHECKS["bound"](LayerCase(NotProven, (4,), certified=False))
    CHECKS["training_mode"](LayerCase(OtherInTraining, (4,), same_in_training=False))
    with pytest.raises(ContractError, match="a Jacobian of the layer of norm at most"):
        CHECKS["bound_after_training"](LayerCase(GrowsInTraining, (4,), slack_in_training=10.0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"make_layer": Half()}, "`make_layer`. Expected a function without arguments.*Received: make_layer=<Half"),
        ({"input_shape": 4}, "`input_shape`. Expected positive integers.*Received: input_shape=4"),
        ({"input_shape": (None, 4)}, r"`input_shape`. Expected positive integers.*Received: input_shape=\(None, 4\)"),
        (
            {"skip": {"bounds": "no"}},
            r"`skip`. Expected names of checks, of \['bad_arguments'.*Received: skip={'bounds'",
        ),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        LayerCase(**{"make_layer": Half, "input_shape": (4,), **arguments})
