# %% [markdown]
# # 3. Hinge-KR on two moons: level sets
#
# Two classes in the plane can be drawn, and so can everything that a network thinks of them. You will see
#
# - what the level sets of a classifier look like, with and without a Lipschitz constant;
# - why the Wasserstein term alone does not classify, and what the hinge adds;
# - that the value of the network is a distance that you can trust.
#
# [Tutorial 1](01_first_network.md) explains the layers that are used here, [tutorial 2](02_wasserstein.md) the
# Kantorovich-Rubinstein (KR) term.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good

# %%
points, labels = make_moons(2048, noise=0.07, random_state=0)
points = points.astype("float32")
epochs = 12 if small else 40

# %% [markdown]
# ## Three networks
#
# All have the same size, and one output $f$: the answer is its sign. The first is an ordinary network with cross
# entropy. The others are 1-Lipschitz. One of them is trained by the KR term alone,
#
# $$\max_f \; \mathbb{E}[f(x) \mid y = 1] - \mathbb{E}[f(x) \mid y = 0] ,$$
#
# the other by **hinge-KR**, which also asks for a margin $m$ on the right side:
#
# $$\max_f \; \mathbb{E}[f \mid y = 1] - \mathbb{E}[f \mid y = 0] - \alpha \, \mathbb{E}[(m - y f)_+] ,$$
#
# where $y$ is counted as $-1$ and $1$ in the hinge. (Losses are minimised, so `KR` and `HingeKR` are minus these.)


# %%
def plain_network():
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1),
        ]
    )


def lipschitz_network():
    return keras.Sequential(
        [
            keras.Input((2,)),
            lip.layers.SpectralDense(64),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(64),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(1),
        ]
    )


def train(model, loss):
    steps = epochs * len(points) // 128
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)), loss)
    model.fit(points, labels, batch_size=128, epochs=epochs, verbose=0)
    return model


keras.utils.set_random_seed(0)
margin = 0.15
models = {
    "cross entropy": train(plain_network(), keras.losses.BinaryCrossentropy(from_logits=True)),
    "KR alone": train(lipschitz_network(), lip.losses.KR()),
    "hinge-KR": train(lipschitz_network(), lip.losses.HingeKR(alpha=20.0, min_margin=margin)),
}

# %% [markdown]
# What each says of the points. The KR estimate, the difference of the two means, is larger for the one that was trained
# for nothing else. Its sign, though, is a poor classifier: only differences of $f$ count in the KR term, so nothing
# tells it where zero is, and even with the best offset the two classes overlap.

# %%
accuracies, estimates = {}, {}
for name, model in models.items():
    values = model.predict(points, batch_size=512, verbose=0)[:, 0]
    accuracies[name] = float(np.mean((values > 0) == labels))
    estimates[name] = float(np.mean(values[labels == 1]) - np.mean(values[labels == 0]))
    best = max(np.mean((values > offset) == labels) for offset in np.quantile(values, np.linspace(0, 1, 201)))
    print(f"{name:13}  accuracy {accuracies[name]:6.1%}, at the best offset {best:6.1%}, KR {estimates[name]:6.2f}")

# %% [markdown]
# ## Level sets
#
# The thick line is where $f = 0$, the boundary; the thin ones are where $f$ is $\pm 0.15$, $\pm 0.3$ and so on. Lines
# of a 1-Lipschitz function can never be closer than 0.15 to one another. Those of the ordinary network are crowded
# around the boundary, and their spacing says nothing.

# %%
low, high = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
across, up = np.meshgrid(np.linspace(low[0], high[0], 96), np.linspace(low[1], high[1], 64))
grid = np.stack([across.ravel(), up.ravel()], axis=1).astype("float32")
figure, axes = plt.subplots(1, 3, figsize=(12, 3.1), layout="constrained", sharey=True)
for axis, (name, model) in zip(axes, models.items(), strict=True):
    values = model.predict(grid, batch_size=512, verbose=0).reshape(across.shape)
    levels = margin * np.arange(-8, 9)
    axis.contourf(across, up, values, levels=levels, cmap="RdBu", extend="both", alpha=0.6)
    axis.contour(across, up, values, levels=levels, colors="black", linewidths=0.4, linestyles="solid")
    axis.contour(across, up, values, levels=[0], colors="black", linewidths=2)
    for label, color in ((0, "darkred"), (1, "darkblue")):
        axis.scatter(*points[labels == label][:300].T, s=3, color=color)
    axis.set_title(f"{name}: {accuracies[name]:.1%} right")
    axis.set_aspect("equal")
plt.show()

# %% [markdown]
# ## A value that is a distance
#
# `certify` bounds the constant of the trained network, whatever the layers promise.

# %%
model = models["hinge-KR"]
certificate = lip.certify(model)
plain_constant = lip.certify(models["cross entropy"]).lipschitz_constant
constant = certificate.lipschitz_constant
print(f"constant of the hinge-KR network: at most {constant:.6f}")
print(f"constant of the one with cross entropy: at most {plain_constant:.1f}")

# %% [markdown]
# With one output, the certified radius of $x$ is $|f(x)| / L$: nothing within that distance of $x$ is answered
# differently. So around each point there is a disc that the boundary does not enter. The hinge asks for radii of at
# least 0.15, and the KR term makes them as large as it can. Here are some of the discs; they touch the boundary where
# the network uses its constant fully.

# %%
logits = model.predict(points, batch_size=512, verbose=0)
radii = certificate.radius(logits)
figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
values = model.predict(grid, batch_size=512, verbose=0).reshape(across.shape)
axis.contour(across, up, values, levels=[0], colors="black", linewidths=2)
for index in range(40):
    color = "darkblue" if labels[index] else "darkred"
    axis.add_patch(plt.Circle(points[index], radii[index], color=color, alpha=0.12, linewidth=0))
    axis.scatter(*points[index], s=6, color=color)
axis.set_aspect("equal")
axis.set_title("Nothing within a disc is answered differently from its centre")
plt.show()

# %% [markdown]
# Let us try to break it: 512 random directions from each of 40 points, at 99.9 % of the radius.

# %%
angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (40, 512))
directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
moved = points[:40, None] + 0.999 * radii[:40, None, None] * directions
answers = model.predict(moved.reshape(-1, 2).astype("float32"), batch_size=512, verbose=0).reshape(40, 512) > 0
broken = int(np.sum(answers != (logits[:40] > 0)))
print(f"{broken} of {answers.size} moved points are answered differently")

# %% [markdown]
# ## What to read next
#
# - [Tutorial 4](04_mnist_0_8.md): the same loss on images, where the gradient of $f$ shows the way to the other class.
# - [Tutorial 5](05_multiclass.md): several classes, and how to choose the margin and `alpha`.
# - Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
#   regularization](https://arxiv.org/abs/2006.06520), the paper that hinge-KR comes from.
