# %% [markdown]
# # 5. Several classes: accuracy against robustness
#
# A 1-Lipschitz network has a budget: the constant. It can be spent on telling more images apart, or on keeping those
# that are told apart further away from the boundary. The loss decides. You will see
#
# - what its two numbers do: `alpha`, the weight of the hinge, and `min_margin`, what the hinge asks for;
# - the curve of certified accuracy against radius, which is how such networks are compared;
# - another loss with another knob, cross entropy with a temperature;
# - a recipe for choosing.
#
# On MNIST the whole takes about a minute. Where that is not at hand, scikit-learn's small digits take its place.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import logging

import keras
import matplotlib.pyplot as plt
import numpy as np

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
has_mnist = os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")) and not small
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns where many models are compiled, as they are here

# %%
if has_mnist:
    import tensorflow_datasets as tfds

    (x_train, y_train), (x_test, y_test) = tfds.as_numpy(
        tfds.load("mnist", split=["train[:12800]", "test[:5000]"], batch_size=-1, as_supervised=True, download=False)
    )
    x_train, x_test = x_train.astype("float32") / 255, x_test.astype("float32") / 255
    margins, distances, epochs, batch_size = (0.2, 0.6, 1.5), np.linspace(0, 2.5, 126), 6, 128
else:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits, train_size=1344, test_size=448, random_state=0, stratify=digits
    )
    margins, distances, epochs, batch_size = (0.1, 0.3, 0.9), np.linspace(0, 1.25, 126), 20, 64
if small:
    margins, epochs = (0.1, 0.9), 5
print(f"{len(x_train)} images to train on, {len(x_test)} to test, of shape {x_train.shape[1:]}, pixels in [0, 1]")

# %% [markdown]
# ## The loss
#
# With several classes each output $f_c$ is a hinge-KR classifier of its own, class $c$ against all others, and the loss
# is the mean over the classes of
#
# $$\mathbb{E}[f_c \mid y \ne c] - \mathbb{E}[f_c \mid y = c] + \alpha \, \mathbb{E}[(m - y_c f_c)_+] ,$$
#
# where $y_c$ is 1 for samples of the class and $-1$ for the others. There are nine times as many others, so we give the
# hinge of the true class nine times the weight: `true_class_weight=9.0`.
#
# All networks below start from the same kernels and see the same batches.

# %%
shown = [0, 12, 30, 63] if has_mnist else [0, 10, 20, 50]  # which distances are printed: 0.24, 0.6, 1.26 for MNIST


def train(loss):
    """Returns the certified accuracy at each distance of a network trained with a loss."""
    keras.utils.set_random_seed(0)
    model = lip.models.dense_net(x_train.shape[1:], classes=10, units=(128, 128))
    steps = epochs * len(x_train) // batch_size
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)), loss)
    model.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=0)
    return lip.certified_accuracy(model, (x_test, y_test), distances, batch_size=len(x_test))


def hkr(alpha, min_margin):
    return lip.losses.MulticlassHKR(alpha=alpha, min_margin=min_margin, true_class_weight=9.0)


def show(curves):
    print("certified at".ljust(28), *(f"{distances[index]:7.2f}" for index in shown))
    for name, shares in curves.items():
        print(name.ljust(28), *(f"{shares[index]:7.1%}" for index in shown))
    lip.plot_certified_accuracy(distances, curves, unit="pixels in [0, 1]")
    plt.show()


# %% [markdown]
# ## The margin
#
# The hinge of a sample is zero once its outputs are `min_margin` on the right side. A small margin leaves the network
# free to get the difficult images right too. A large one, larger than many images allow, makes it give those up in
# favour of distance on the others: the curve starts lower and ends higher. Margins are in the units of the input, since
# the network is 1-Lipschitz: think of how far apart images of different classes are.

# %%
alpha = 50.0
by_margin = {f"min_margin={margin}": train(hkr(alpha, margin)) for margin in margins}
show(by_margin)

# %% [markdown]
# ## Alpha
#
# The KR term pulls all images away from the boundary, the hinge pushes those that are within the margin. With a small
# `alpha` the first one wins, which likes large values on easy images more than right answers on difficult ones.
# Beyond some point a larger `alpha` changes little: the loss is then the hinge alone.

# %%
margin = margins[1]
alphas = () if small else (2.0, 500.0)
by_alpha = {f"alpha={number:g}": train(hkr(number, margin)) for number in alphas}
by_alpha["alpha=50"] = by_margin[f"min_margin={margin}"]
show(by_alpha)

# %% [markdown]
# ## Cross entropy with a temperature
#
# Cross entropy works too, if its input is scaled: `TauSparseCategoricalCrossentropy` multiplies the outputs by `tau`
# first. Differences of outputs count up to about `1 / tau`: a large `tau` is content with small margins, a small one
# asks for large ones. One knob, where hinge-KR has two.

# %%
taus = (3.0,) if small else (10.0, 3.0, 1.0)
by_tau = {f"tau={tau:g}": train(lip.losses.TauSparseCategoricalCrossentropy(tau)) for tau in taus}
show({f"alpha=50, min_margin={margin}": by_margin[f"min_margin={margin}"], **by_tau})

# %% [markdown]
# ## All in one picture
#
# Each network is one point: accuracy to the right, certified accuracy at a radius upwards. No network is best in both.
# What can be had is a front, and the knobs move along it. Points that lie below the front are bad choices at that
# radius.

# %%
index = shown[3]
curves = {**by_margin, **by_alpha, **by_tau}
del curves["alpha=50"]  # one of the margins
markers = {"min_margin": "o", "alpha": "s", "tau": "^"}
figure, axis = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
for name, shares in curves.items():
    axis.scatter(100 * shares[0], 100 * shares[index], marker=markers[name.split("=")[0]], s=70, label=name)
axis.margins(0.1)
axis.set_xlabel("accuracy (%)")
axis.set_ylabel(f"certified accuracy at {distances[index]:.2f} (%)")
axis.grid(alpha=0.3)
figure.legend(loc="outside right upper")
plt.show()

# %% [markdown]
# ## A recipe
#
# 1. Say first at which radius you want to be safe, in the units of your input, and what accuracy you cannot do without.
# 2. Begin with `alpha=50` and a `min_margin` of about that radius.
# 3. Raise the margin while accuracy allows it, and lower it otherwise. Try factors of 2.
# 4. If accuracy is still too low, raise `alpha`, or try cross entropy with a `tau` of about 2 divided by that radius.
#    Then train longer, and wider: constrained networks take more of both than ordinary ones.
#
# While training, `lip.callbacks.CertifyCallback((x_val, y_val), radii=[...])` logs the certified accuracy after each
# epoch; choose on validation data, and keep the test set for the end.
#
# ## What to read next
#
# - [Tutorial 6](06_attack.md): whether an attack can do better than the certificate says.
# - [Tutorial 8](08_deep.md): networks that get more out of the same constant.
# - Béthune et al., 2022, [Pay attention to your loss](https://arxiv.org/abs/2104.05097): why there is such a front.
