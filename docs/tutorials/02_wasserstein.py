# %% [markdown]
# # 2. Estimating a Wasserstein distance
#
# How far apart are two sets of samples? The Wasserstein-1 distance answers in the units of the data: the least work
# that it takes to move one onto the other, mass times way. 1-Lipschitz networks estimate it. You will learn
#
# - how the distance becomes the maximum of a difference of means;
# - how to train for it, with the loss `KR`;
# - how good the estimate is, in two cases where the truth is known.
#
# [Tutorial 1](01_first_network.md) explains the layers that are used here.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# ## Two circles
#
# One set of points lies on a circle of radius 1, the other on a circle of radius 2. Each point of the inner circle
# moves outward by 1, and nothing cheaper is possible: the distance of the two distributions is exactly 1.

# %%
count = 4096
angles = rng.uniform(0, 2 * np.pi, count)
labels = rng.integers(0, 2, count)  # 1: the outer circle
points = ((1 + labels)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype("float32")

# %% [markdown]
# ## The dual form
#
# Kantorovich and Rubinstein proved that the least work is also the greatest value of a difference of means,
#
# $$W_1(P, Q) = \max_{f \text{ 1-Lipschitz}} \; \mathbb{E}_{x \sim P}[f(x)] - \mathbb{E}_{x \sim Q}[f(x)] .$$
#
# One half is easy to see: moving a grain of mass from $x$ to $y$ raises $f$ by at most $\|x - y\|$, which is what the
# move costs. So each 1-Lipschitz $f$ gives a lower bound, and training looks for the largest. The loss `KR` is minus
# this difference, $P$ being the samples with label 1. The metric of the same name is the difference itself.
#
# The network must be 1-Lipschitz, or the maximum is infinite. And it has to be able to have slope 1 nearly everywhere,
# since the best $f$ climbs at that slope all along the ways that the mass takes. Networks of orthogonal layers and
# sorts can do that; with `relu` in their place they cannot.


# %%
def network(dimensions):
    return keras.Sequential(
        [
            keras.Input((dimensions,)),
            lip.layers.SpectralDense(64),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(64),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(1),
        ]
    )


epochs = 8 if small else 20
model = network(2)
model.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, epochs * count // 256)),
    lip.losses.KR(),
    metrics=[lip.metrics.KR()],
)
renormalize = lip.callbacks.RenormalizeCallback()
history = model.fit(points, labels, batch_size=256, epochs=epochs, callbacks=[renormalize], verbose=0).history

values = model.predict(points, batch_size=count, verbose=0)[:, 0]
circles = float(np.mean(values[labels == 1]) - np.mean(values[labels == 0]))
constant = lip.certify(model).lipschitz_constant
print(f"estimate {circles:.4f}, truth 1; constant of the network at most {constant:.7f}")

# %% [markdown]
# A difference of means over a constant that is certified is a true statement about the samples, wherever training
# stopped: they are at least so far apart. Below, the estimate on its way up, and the function that was found. Its level
# sets are nearly circles, 0.1 apart from one another: it climbs straight from the inner circle to the outer.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(np.arange(1, epochs + 1), history["kr"], label="estimate, mean over the epoch")
left.axhline(1, color="black", linestyle="--", linewidth=1, label="truth")
left.set(xlabel="epoch", ylabel="distance", ylim=(0, 1.1), xticks=range(0, epochs + 1, 4))
left.legend(loc="lower right")
left.grid(alpha=0.3)

across, up = np.meshgrid(np.linspace(-2.4, 2.4, 96), np.linspace(-2.4, 2.4, 96))
grid = np.stack([across.ravel(), up.ravel()], axis=1).astype("float32")
height = model.predict(grid, batch_size=len(grid), verbose=0).reshape(across.shape)
levels = np.arange(np.floor(height.min() * 10) / 10, height.max() + 0.1, 0.1)
filled = right.contourf(across, up, height, levels=levels, cmap="viridis")
right.contour(across, up, height, levels=levels, colors="black", linewidths=0.3)
right.scatter(*points[:400].T, s=3, color=np.where(labels[:400], "tab:red", "white"))
right.set_aspect("equal")
figure.colorbar(filled, ax=right, label="f")
plt.show()

# %% [markdown]
# ## Digits, in 64 dimensions
#
# Now the images of the zeros and of the ones among scikit-learn's handwritten digits: 64 pixels between 0 and 1. With
# as many samples on both sides, the truth is the cheapest pairing of zeros with ones, which an exact algorithm finds
# for a few hundred samples. (It takes a time of the order of the cube of their number: that is where networks come in.)

# %%
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
pairs = 128
zeros, ones = images[digits == 0][:pairs], images[digits == 1][:pairs]
ways = cdist(zeros, ones)
rows, columns = linear_sum_assignment(ways)
truth = float(ways[rows, columns].mean())
print(f"the cheapest pairing moves each image by {truth:.3f} on average")

# %%
samples = np.concatenate([ones, zeros])
which = np.concatenate([np.ones(pairs), np.zeros(pairs)])
epochs = 60 if small else 400
critic = network(64)
critic.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, epochs)), lip.losses.KR())
critic.fit(samples, which, batch_size=2 * pairs, epochs=epochs, verbose=0)  # all samples at once
lip.renormalize(critic)

values = critic.predict(samples, batch_size=2 * pairs, verbose=0)[:, 0]
estimate = float(np.mean(values[which == 1]) - np.mean(values[which == 0]))
estimate /= lip.certify(critic).lipschitz_constant
print(f"estimate {estimate:.3f}, {estimate / truth:.1%} of the truth, and never above it")

# %% [markdown]
# Along the pairs of the cheapest pairing, the best $f$ has slope exactly 1: it rises by the length of the way. The
# network's rise, pair by pair, lies below that line, and where it is near, the network has found the way.

# %%
rises = values[which == 1][columns] - values[which == 0][rows]
lengths = ways[rows, columns]
figure, axis = plt.subplots(figsize=(5, 4.4), layout="constrained")
axis.plot([0, lengths.max()], [0, lengths.max()], color="black", linewidth=1, linestyle="--", label="slope 1")
axis.scatter(lengths, rises, s=10, label="pair of a zero and a one")
axis.set(xlabel="l2 distance of the pair", ylabel="rise of f from one to the other", xlim=(2, None), ylim=(2, None))
axis.legend()
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The estimate is one of the distance between these *samples*. That between the distributions they come from is another
# matter: in many dimensions a few samples are far from one another even if they come from the same distribution.
#
# ## What to read next
#
# - [Tutorial 3](03_two_moons.md): what becomes of this $f$ as a classifier, and what it lacks.
# - Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381): why
#   sorts and orthogonal kernels.
