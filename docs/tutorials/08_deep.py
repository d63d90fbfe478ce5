# %% [markdown]
# # 8. Deep networks: residual and orthogonal
#
# The more layers, the more is lost on the way, unless each layer loses nothing. You will
#
# - see why `relu` and kernels that are merely divided by their norm do not go deep;
# - add residual connections without doubling the constant, in three ways;
# - train a deep orthogonal network and a residual one from `lip.models`, and compare them with a shallow one.
#
# [Tutorial 5](05_multiclass.md) explains the loss and the curves.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import logging
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns where many models are compiled, as they are here
keras.utils.set_random_seed(0)

# %%
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
x_train, x_test, y_train, y_test = train_test_split(
    images, digits, train_size=1344, test_size=448, random_state=0, stratify=digits
)

# %% [markdown]
# ## What gets lost
#
# Each layer of these untrained networks is 1-Lipschitz, and so is the whole. But how much of that constant is there at
# all? `empirical_lipschitz` finds the largest stretch at some images. With `relu` half of the channels are cut off in
# each layer. A kernel that is divided by its largest singular value shrinks all other directions. Orthogonal kernels
# with sorted pairs keep everything, at any depth.

# %%
depths = (2, 6) if small else (1, 2, 4, 8, 16)
kinds = {
    "orthogonal, sorted pairs": ("polar", lip.layers.MaxMin),
    "orthogonal, relu": ("polar", "relu"),
    "divided by the norm, sorted pairs": (lip.parametrizations.Spectral(), lip.layers.MaxMin),
}
stretches = {}
for name, (parametrization, activation) in kinds.items():
    stretches[name] = []
    for depth in depths:
        network = lip.models.dense_net((8, 8, 1), 10, (64,) * depth, parametrization, activation)
        if parametrization != "polar":  # the default start is orthogonal already: begin with random kernels instead
            for layer in network.layers:
                if isinstance(layer, lip.layers.SpectralDense):
                    layer.stored_kernel.assign(keras.random.normal(layer.stored_kernel.shape))
            lip.renormalize(network)
        stretches[name].append(lip.empirical_lipschitz(network, x_test[:32], iterations=10, search_steps=0))
    print(f"{name:34}", *(f"{depth}: {stretch:.3f} " for depth, stretch in zip(depths, stretches[name], strict=True)))
    plt.semilogy(depths, stretches[name], "o-", label=name)
plt.xlabel("hidden layers")
plt.ylabel("largest stretch found at images")
plt.ylim(1e-3, 2)
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
# In a classifier what is lost comes off the margins, and so off the radii, while the certificate still says 1.
#
# ## Residual connections
#
# $x + f(x)$ of a 1-Lipschitz $f$ may have the constant 2. Halving it is sound, but halves the margins, too. Better:
#
# - `LipResidual` computes $a x + (1 - a) f(x)$ with an $a$ that is learned;
# - `ConcatResidual` passes one half of the channels on and changes the other;
# - `SLLDense` and `SLLConv2D` compute $x - 2 W T^{-1} \mathrm{relu}(W^\top x + b)$, where $T$ is a diagonal matrix that
#   follows from $W$: [Araujo et al.](https://arxiv.org/abs/2303.03169) prove that it is 1-Lipschitz for every $W$. It
#   is a residual connection, and with `relu`, yet it need not lose anything.
#
# `certify` proves each of them anew from the plain model they fold to.

# %%
layers = lip.layers
blocks = {
    "x + f(x)": lambda x: keras.layers.Add()([x, layers.MaxMin()(layers.SpectralDense(64)(x))]),
    "LipResidual": layers.LipResidual([layers.SpectralDense(64), layers.MaxMin()]),
    "ConcatResidual": layers.ConcatResidual([layers.SpectralDense(32), layers.MaxMin()]),
    "SLLDense": layers.SLLDense(128),
}
constants = {}
for name, block in blocks.items():
    inputs = keras.Input((64,))
    constants[name] = lip.certify(keras.Model(inputs, block(inputs))).lipschitz_constant
    print(f"{name:15} constant at most {constants[name]:.6f}")

# %% [markdown]
# ## Whole networks
#
# `lip.models` has the architectures of the field with sizes to choose. We take
#
# - `dense_net`: two hidden layers, for comparison;
# - `lip_conv_net` with `"aoc"` kernels: orthogonal as *operators*, which for a convolution is more than an orthogonal
#   kernel matrix, and what keeps a deep convolutional network from losing its gradient;
# - `lip_conv_net` with `"sll"` blocks, the residual one.
#
# The convolutional ones have two blocks of two convolutions each here, and a head of 10 outputs; the sizes of the
# paper, `"XS"` to `"L"`, have five by five.

# %%
conv_net = {"input_shape": (8, 8, 1), "width": 16, "blocks": 2, "convolutions": 2, "head": "orthogonal"}
networks = {
    "dense": lip.models.dense_net((8, 8, 1), 10, (64, 64)),
    "orthogonal (aoc)": lip.models.lip_conv_net(parametrization="aoc", name="orthogonal", **conv_net),
    "residual (sll)": lip.models.lip_conv_net(parametrization="sll", name="residual", **conv_net),
}
epochs = 5 if small else 15
distances = np.linspace(0, 1, 101)
bounds, curves = {}, {}
for name, network in networks.items():
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, epochs * len(x_train) // 32)),
        lip.losses.MulticlassHKR(alpha=50.0, min_margin=0.4, true_class_weight=9.0),
    )
    begin = time.perf_counter()
    renormalize = lip.callbacks.RenormalizeCallback()
    network.fit(x_train, y_train, batch_size=32, epochs=epochs, callbacks=[renormalize], verbose=0)
    seconds = time.perf_counter() - begin
    certificate = lip.certify(network)
    bounds[name] = certificate.lipschitz_constant
    logits = network.predict(x_test, batch_size=448, verbose=0)
    curves[name] = certificate.certified_accuracy(logits, y_test, distances)
    stretch = lip.empirical_lipschitz(network, x_test[:32], search_steps=0)
    print(
        f"{name:17} {network.count_params():6} parameters, {seconds:3.0f} s, constant from {stretch:.3f} to "
        f"{bounds[name]:.4f}, certified at 0, 0.3, 0.5: "
        + ", ".join(f"{curves[name][index]:.1%}" for index in (0, 30, 50))
    )

lip.plot_certified_accuracy(distances, curves, unit="pixels in [0, 1]", title="Digits")
plt.show()

# %% [markdown]
# On images as small as these a dense network is hard to beat; convolutions pay on larger ones. What the table shows is
# how little is lost with depth: the constant that is found at images is not far below the one that is certified.
#
# ## Before serving: fold
#
# `"aoc"` kernels and SLL blocks are computed from free weights whenever the layer is called. Folded, they are ordinary
# convolutions.

# %%
deep = networks["orthogonal (aoc)"]
plain = lip.vanilla_model(deep)
seconds = {}
for name, network in (("as trained", deep), ("folded", plain)):
    network.predict(x_test, batch_size=64, verbose=0)  # compiles
    begin = time.perf_counter()
    network.predict(x_test, batch_size=64, verbose=0)
    seconds[name] = time.perf_counter() - begin
    print(f"{name}: {1000 * seconds[name]:.0f} ms for {len(x_test)} images")

# %% [markdown]
# ## What to read next
#
# - [Choosing layers](../choosing-layers.md): which layer for which case, from measurements.
# - [Tutorial 10](10_own_layer.md): a layer of your own.
# - Prach et al., 2024, [1-Lipschitz layers compared](https://arxiv.org/abs/2311.16833).
