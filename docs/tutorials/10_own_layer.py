# %% [markdown]
# # 10. A layer of your own
#
# There are three ways to bring something of your own into a certified network, from the most work to the least. You
# will
#
# - write a layer that holds its constant by construction, and folds;
# - write a parametrization: another way for a dense layer to hold its constant;
# - tell `certify` the constant of a layer that somebody else wrote;
# - put all of it through the checks that the library's own layers have to pass.
#
# [Tutorial 7](07_serve.md) explains what folding is for.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings

import dataclasses
import unittest

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import deel_like_lip as lip
from deel_like_lip.testing import ContractError, LayerCase, check_layer, layer_checks

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
keras.utils.set_random_seed(0)

# %% [markdown]
# ## A layer
#
# Our layer rotates pairs of channels, each pair by an angle that is learned:
#
# $$\begin{pmatrix} y_i \\ y_{i + C/2} \end{pmatrix} = k \begin{pmatrix} \cos a_i & -\sin a_i \\ \sin a_i & \cos a_i
# \end{pmatrix} \begin{pmatrix} x_i \\ x_{i + C/2} \end{pmatrix} .$$
#
# A rotation keeps lengths, so the layer is $k$-Lipschitz for all angles, and nothing has to be constrained. It derives
# from `LipschitzLayer`, which brings the argument `k_coef_lip`, and adds to an ordinary Keras layer one method: `fold`
# returns a function that does the same with built-in Keras layers and ops. A rotation of pairs is a matrix, so it
# folds to a `Dense` layer. Registering the class lets Keras load it from a file.


# %%
@keras.saving.register_keras_serializable("tutorial")
class PairRotation(lip.layers.LipschitzLayer):
    """Rotates channels i and i + C/2 by a learned angle."""

    def build(self, input_shape):
        if input_shape[-1] % 2:
            raise ValueError(f"PairRotation expects an even number of channels. Received: input_shape={input_shape}")
        self.angles = self.add_weight((input_shape[-1] // 2,), "random_normal", name="angles")

    def call(self, inputs):
        left, right = ops.split(inputs, 2, axis=-1)
        cosine, sine = ops.cos(self.angles), ops.sin(self.angles)
        rotated = [cosine * left - sine * right, sine * left + cosine * right]
        return self.k_coef_lip * ops.concatenate(rotated, axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape

    def fold(self):
        angles = ops.convert_to_numpy(self.angles)
        cosine, sine = np.diag(np.cos(angles)), np.diag(np.sin(angles))
        kernel = self.k_coef_lip * np.block([[cosine, sine], [-sine, cosine]])
        dense = keras.layers.Dense(len(kernel), use_bias=False, name=self.name, dtype=self.dtype_policy)

        def folded(inputs):
            outputs = dense(inputs)
            dense.set_weights([kernel])
            return outputs

        return folded


# %% [markdown]
# ## Does it keep the contract?
#
# A Lipschitz layer promises many things: that its constant holds, before training and after; that its fold computes the
# same, and loads without the library; that it can be saved, works in half precision and under compilation, takes a
# batch of one sample, and so on. `check_layer` tries them all on the active backend. It wants a function that makes a
# new layer, and the shape of one small sample, and it is silent if all is well.

# %%
check_layer(lambda: PairRotation(k_coef_lip=2.0), (6,))
print("PairRotation keeps the contract")

# %% [markdown]
# What it says of a layer that does not is worth a look. Here somebody has multiplied by the constant twice.


# %%
@keras.saving.register_keras_serializable("tutorial")
class WrongRotation(PairRotation):
    def call(self, inputs):
        return self.k_coef_lip * super().call(inputs)

    def fold(self):
        inner = super().fold()
        return lambda inputs: self.k_coef_lip * inner(inputs)


wrong = LayerCase(lambda: WrongRotation(k_coef_lip=2.0), (6,))
try:
    dict(layer_checks())["bound"](wrong)
    caught = ""
except ContractError as error:
    caught = str(error)
print(caught)

# %% [markdown]
# In a test suite each check can be a test of its own; the docstring of `deel_like_lip.testing` has the ten lines for
# pytest.
#
# ## A parametrization
#
# `SpectralDense` and the convolutions take a `parametrization`, which says how a kernel stays allowed. Some store the
# kernel and *project* it after each update. Others store a free weight and *compute* the kernel from it, which is
# simpler to write: derive from `ComputedKernel` and give the formula.
#
# Ours divides a weight $V$ by a bound of its largest singular value that costs next to nothing (Schur's test):
#
# $$\|V\|_2 \le \sqrt{\|V\|_1 \, \|V\|_\infty} ,$$
#
# the largest sum of absolute values in a column, times that in a row. `self.norm` is the constant that the layer asks
# for.


# %%
@keras.saving.register_keras_serializable("tutorial")
@dataclasses.dataclass(frozen=True)
class SchurTest(lip.parametrizations.ComputedKernel):
    """A free weight divided by the root of its largest row sum times its largest column sum."""

    def kernel(self, weight, kernel_shape):
        sizes = ops.abs(ops.convert_to_tensor(weight))
        bound = ops.sqrt(ops.max(ops.sum(sizes, axis=0)) * ops.max(ops.sum(sizes, axis=1)))
        return self.norm * weight / ops.maximum(bound, 1e-12)


# %%
case = LayerCase(lambda: lip.layers.SpectralDense(6, parametrization=SchurTest()), (4,))
passed = []
for name, check in layer_checks():
    if small and name not in ("bound", "bound_after_training", "config", "fold", "gradient", "keras_file"):
        continue
    try:
        check(case)
        passed.append(name)
    except unittest.SkipTest as reason:
        print(f"skipped {name}: {reason}")
print(f"passed: {', '.join(passed)}")

# %% [markdown]
# Sound it is. Whether it is *good* is another question: the bound is not tight, so the layer does not reach its
# constant, and singular values other than the largest are smaller still. A network of such layers loses what it could
# have used. Here is what that costs, next to `"polar"`, the default, with orthogonal kernels.

# %%
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
x_train, x_test, y_train, y_test = train_test_split(
    images, digits, train_size=1344, test_size=448, random_state=0, stratify=digits
)
epochs = 4 if small else 15
distances = np.linspace(0, 1, 101)
curves, largest = {}, {}
for name, parametrization in {"Schur's test": SchurTest(), "polar": "polar"}.items():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            lip.layers.SpectralDense(64, parametrization=parametrization),
            PairRotation(),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(10, parametrization=parametrization),
        ]
    )
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, epochs * len(x_train) // 32)),
        lip.losses.MulticlassHKR(alpha=50.0, min_margin=0.4, true_class_weight=9.0),
    )
    model.fit(x_train, y_train, batch_size=32, epochs=epochs, verbose=0)
    largest[name] = [
        float(np.linalg.norm(ops.convert_to_numpy(layer.kernel), 2))
        for layer in model.layers
        if isinstance(layer, lip.layers.SpectralDense)
    ]
    curves[name] = lip.certified_accuracy(model, (x_test, y_test), distances, batch_size=448)
    values = ", ".join(f"{value:.3f}" for value in largest[name])
    print(f"{name:13} largest singular values {values}; certified at 0 and 0.3: {curves[name][[0, 30]]}")

lip.plot_certified_accuracy(distances, curves, unit="pixels in [0, 1]", title="A sound parametrization, and a good one")
plt.show()

# %% [markdown]
# The certificate is right in both cases, for `certify` looks at the kernels and not at what a parametrization promises.
#
# ## A bound rule
#
# The least work: somebody has written an ordinary Keras layer, and you know its constant. `certify` does not, and
# refuses by name.


# %%
@keras.saving.register_keras_serializable("tutorial")
class Wave(keras.layers.Layer):
    """The function a sin(b x) of each value."""

    def __init__(self, amplitude=0.5, frequency=2.0, **kwargs):
        super().__init__(**kwargs)
        self.amplitude, self.frequency = amplitude, frequency

    def call(self, inputs):
        return self.amplitude * ops.sin(self.frequency * inputs)

    def get_config(self):
        return {**super().get_config(), "amplitude": self.amplitude, "frequency": self.frequency}


waves = keras.Sequential([keras.Input((8,)), lip.layers.SpectralDense(8), Wave(), lip.layers.SpectralDense(2)])
try:
    lip.certify(waves)
    refusal = ""
except lip.bounds.CannotBoundError as error:
    refusal = str(error)
print(refusal)

# %% [markdown]
# A rule is a function of the layer and the shape of its input that returns an upper bound. The slope of $a \sin(b x)$
# is at most $|a b|$, and the constant of a function that acts on each value by itself is that of its slope. **A
# certificate is as sound as its rules**: write the proof next to yours, and hold it against a search, which finds a
# lower bound.


# %%
@lip.bounds.register_bound_rule(Wave)
def wave_bound(layer, input_shape):
    return abs(layer.amplitude * layer.frequency)  # |d/dx a sin(b x)| = |a b cos(b x)| <= |a b|


bound = lip.certify(waves).lipschitz_constant
found = lip.empirical_lipschitz(waves, np.random.default_rng(0).normal(size=(200, 8)).astype("float32"))
print(f"the constant is between {found:.4f} and {bound:.4f}")

# %% [markdown]
# Such a model folds, but what it folds to still contains a `Wave`: whoever loads it needs that class, and exports work
# if the runtime knows its operations. A `LipschitzLayer` with a `fold` of its own has no such strings attached.
#
# ## What to read next
#
# - The docstrings of `deel_like_lip.testing`, `deel_like_lip.parametrizations` and `deel_like_lip.bounds`.
# - The layer files of the library, which are short: `scalar_activations.py` for activations, `dense.py` for layers with
#   a constrained kernel.
