# %% [markdown]
# # 1. A first 1-Lipschitz network, and why
#
# A neural network can be right on a picture and wrong on one that looks the same. You will see here where that comes
# from, and train a network that comes with a guarantee against it. You will learn
#
# - what a Lipschitz constant is, and how a certified radius follows from it;
# - which layers keep the constant at 1, and which loss trains them;
# - how to certify a network, and how to read the certificate.
#
# All you need to know is how to train a classifier with Keras. This takes half a minute on a laptop.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
keras.utils.set_random_seed(0)

# %% [markdown]
# ## The data
#
# Scikit-learn comes with 1797 handwritten digits of 8 x 8 pixels, each a number between 0 (white) and 1 (black) after
# we divide by 16.

# %%
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
x_train, x_test, y_train, y_test = train_test_split(
    images, digits, train_size=1344, test_size=448, random_state=0, stratify=digits
)
print(f"{len(x_train)} images to train on, {len(x_test)} to test, of shape {x_train.shape[1:]}")

# %% [markdown]
# ## A network as everybody trains it
#
# Dense layers, `relu`, cross entropy. It is right on nearly all test images.

# %%
epochs = 6 if small else 20

plain = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ],
    name="plain",
)
cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
plain.compile(keras.optimizers.Adam(3e-3), cross_entropy)
plain.fit(x_train, y_train, batch_size=32, epochs=epochs, verbose=0)

plain_logits = plain.predict(x_test, batch_size=64, verbose=0)
plain_accuracy = float(np.mean(np.argmax(plain_logits, axis=1) == y_test))
print(f"right on {plain_accuracy:.1%} of the test images")

# %% [markdown]
# ## How fast can its answer change?
#
# A function $f$ is **$L$-Lipschitz** if its output never moves more than $L$ times as far as its input:
#
# $$\|f(x) - f(y)\| \le L \, \|x - y\| \quad \text{for all } x, y .$$
#
# The norm here, and everywhere in this library, is the Euclidean one, **l2**: the root of the sum of squares. The
# smallest such $L$ is *the* Lipschitz constant of $f$. For a network nobody knows it exactly, but it can be caught
# between two numbers. `empirical_lipschitz` searches for pairs of inputs whose outputs are far apart: the constant is
# at least what it finds. `certify` computes, layer by layer, a number that the constant cannot exceed.

# %%
plain_found = lip.empirical_lipschitz(plain, x_test[:200])
plain_certificate = lip.certify(plain)
plain_constant = plain_certificate.lipschitz_constant
print(f"the constant of the plain network is between {plain_found:.1f} and {plain_constant:.1f}")

# %% [markdown]
# That is a lot: an image of these has a norm of about 4, so it does not take much of a change to turn the largest
# output into another one. Nothing in the training speaks against it, for cross entropy falls as outputs grow.
#
# ## From a constant to a guarantee
#
# Say that the answer is the class of the largest output $f_i$, and $f_j$ is another one. When the input moves by
# $\delta$, the difference $f_i - f_j$ shrinks by at most $L_{ij} \|\delta\|$, where $L_{ij}$ is the constant of that
# difference. As long as
#
# $$\|\delta\| < r(x) = \min_{j \ne i} \frac{f_i(x) - f_j(x)}{L_{ij}}$$
#
# no other class can come out on top. This $r(x)$ is the **certified radius** of $x$: no change of the image whose l2
# norm is smaller changes the answer, whoever made it and by whatever method. If the network as a whole is
# $L$-Lipschitz, then $L_{ij} \le \sqrt{2} L$.
#
# Large radii need large differences *and* a small constant. Multiplying a network by 10 gains nothing, since both grow.
# So we fix the constant at 1 and train for large differences.
#
# ## A 1-Lipschitz network
#
# Constants multiply along a chain of layers, so it is enough that no layer has one above 1.
#
# - A dense layer stretches its input by at most the largest singular value of its kernel. `SpectralDense` holds *all*
#   singular values at 1, in training and after it: nothing is stretched, and as little as possible is lost.
# - `GroupSort2` sorts channels in pairs. Sorting only moves numbers around, so it is 1-Lipschitz; and unlike `relu`, it
#   throws nothing away. In a network that may not stretch, what a layer throws away cannot be had back.
#
# Outputs that may not grow cannot bring cross entropy near zero. `MulticlassHKR` asks instead for a margin: a hinge
# loss, of weight `alpha`, on outputs that are not at least `min_margin` on the right side of 0, and a second term that
# pushes the classes apart beyond it. [Tutorial 5](05_multiclass.md) is about choosing the two numbers.

# %%
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        lip.layers.SpectralDense(64),
        lip.layers.GroupSort2(),
        lip.layers.SpectralDense(64),
        lip.layers.GroupSort2(),
        lip.layers.SpectralDense(10),
    ],
    name="lipschitz",
)
steps = epochs * len(x_train) // 32
model.compile(
    # Constrained kernels keep on turning at a constant rate: let it decay.
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)),
    lip.losses.MulticlassHKR(alpha=50.0, min_margin=0.4, true_class_weight=9.0),
)
model.fit(x_train, y_train, batch_size=32, epochs=epochs, callbacks=[lip.callbacks.RenormalizeCallback()], verbose=0)
logits = model.predict(x_test, batch_size=64, verbose=0)
answers = np.argmax(logits, axis=1)
accuracy = float(np.mean(answers == y_test))
print(f"right on {accuracy:.1%} of the test images")

# %% [markdown]
# The constraint holds after each step of training, with any Keras optimizer. `RenormalizeCallback` is optional: between
# steps singular values may be a little below 1, and it makes them 1 to the last digit at the end of each epoch.

# %%
for layer in model.layers:
    if isinstance(layer, lip.layers.SpectralDense):
        values = np.linalg.svd(keras.ops.convert_to_numpy(layer.kernel), compute_uv=False)
        print(f"{layer.name}: singular values from {values.min():.6f} to {values.max():.6f}")

# %% [markdown]
# ## The certificate
#
# `certify` trusts none of that. It turns the network into a plain Keras model and computes the bound from the kernels
# it finds there.

# %%
certificate = lip.certify(model)
found = lip.empirical_lipschitz(model, x_test[:200])
constant = certificate.lipschitz_constant
print(certificate.summary())
print(f"\nThe constant is between {found:.4f} and {constant:.4f}")

# %% [markdown]
# The search finds nearly 1, so the bound is nearly the truth. `radius` turns outputs into radii, one for each image, in
# the units of the input: a radius of 0.3 means that all pixels together may change by 0.3 in l2. Here are the test
# images with the smallest radii and the largest. Those of which the network is not sure are those that a person would
# look at twice.

# %%
radii = certificate.radius(logits)

order = np.argsort(radii)
figure, axes = plt.subplots(2, 6, figsize=(9, 3.8), layout="constrained")
for axis, index in zip(axes.flat, [*order[:6], *order[-6:]], strict=True):
    axis.imshow(x_test[index, ..., 0], cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(f"{answers[index]}, radius {radii[index]:.2f}", fontsize=10)
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("smallest")
axes[1, 0].set_ylabel("largest")
figure.suptitle("The answer, and how far it is certified")
plt.show()

# %% [markdown]
# ## What it costs, and what it gives
#
# The *certified accuracy* at a radius is the share of test images that are answered rightly and certified to stay so
# within that radius. At radius 0 it is the accuracy as you know it.

# %%
distances = np.linspace(0, 1, 101)
certified = certificate.certified_accuracy(logits, y_test, distances)
plain_certified = plain_certificate.certified_accuracy(plain_logits, y_test, distances)

print("radius   plain   1-Lipschitz")
for index in (0, 10, 20, 30, 50):
    print(f"{distances[index]:6.2f}  {plain_certified[index]:6.1%}  {certified[index]:6.1%}")

lip.plot_certified_accuracy(
    distances,
    {"plain": plain_certified, "1-Lipschitz": certified},
    unit="pixels in [0, 1]",
    title="Handwritten digits",
)
plt.show()

# %% [markdown]
# The plain network is not proven to be bad beyond its curve: nothing is known there. (An attack finds out, in
# [tutorial 6](06_attack.md).) Of the 1-Lipschitz one it is known, before anybody attacks it.
#
# ## What to read next
#
# - [Tutorial 2](02_wasserstein.md): what the second term of the loss measures, the Wasserstein distance.
# - [Tutorial 5](05_multiclass.md): how to choose the margin and `alpha`.
# - [Tutorial 7](07_serve.md): how to ship such a network, certificate included, to people who do not have this library.
