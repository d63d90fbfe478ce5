# %% [markdown]
# # 6. Attacking a certified model, and failing
#
# A certificate is a statement that others can try to refute. Here we try, with the attacks of the
# [adversarial-robustness-toolbox](https://adversarial-robustness-toolbox.readthedocs.io) (ART), a library that others
# wrote for that. You will
#
# - wrap a Keras model for ART;
# - break an ordinary network that is as accurate, far below what the certified one withstands;
# - attack a certified one, find no answer that changes within its radius, and see how near the attack comes.
#
# ART needs a backend that it knows: TensorFlow or torch (`pip install "deel-like-lip[attacks]"`).

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import keras
import matplotlib.pyplot as plt
import numpy as np
from art.attacks.evasion import DeepFool, ProjectedGradientDescent
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
keras.utils.set_random_seed(0)

# %% [markdown]
# ## Two models
#
# An ordinary network and a 1-Lipschitz one of the same size, trained on scikit-learn's digits as in
# [tutorial 1](01_first_network.md).

# %%
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
x_train, x_test, y_train, y_test = train_test_split(
    images, digits, train_size=1344, test_size=448, random_state=0, stratify=digits
)
epochs = 6 if small else 20

plain = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
plain.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
plain.fit(x_train, y_train, batch_size=32, epochs=epochs, verbose=0)

model = lip.models.dense_net((8, 8, 1), classes=10, units=(64, 64))
model.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, epochs * len(x_train) // 32)),
    lip.losses.MulticlassHKR(alpha=50.0, min_margin=0.4, true_class_weight=9.0),
)
renormalize = lip.callbacks.RenormalizeCallback()
model.fit(x_train, y_train, batch_size=32, epochs=epochs, callbacks=[renormalize], verbose=0)

# %% [markdown]
# ## The certificate comes first
#
# With `rounding="sound"`, radii hold for what float32 arithmetic computes. An attack that looks for the very edge of a
# radius could otherwise win by a rounding error. The ordinary model can be certified as well: its radii are small but
# they are there.

# %%
attacked, truth = x_test[: 32 if small else 128], y_test[: 32 if small else 128]
networks = {"ordinary": plain, "1-Lipschitz": model}
radii, answers = {}, {}
for name, network in networks.items():
    logits = network.predict(attacked, batch_size=len(attacked), verbose=0)
    answers[name] = np.argmax(logits, axis=1)
    radii[name] = lip.certify(network, rounding="sound").radius(logits, inputs=attacked)
    right = np.mean(answers[name] == truth)
    print(f"{name:12} right on {right:.1%}, median certified radius {np.median(radii[name]):.3f}")

# %% [markdown]
# ## Wrapping a model for ART
#
# ART wants to call the model and to have gradients of a loss. It attacks the *answer* that the model gives, right or
# wrong.


# %%
def art_classifier(network):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf
        from art.estimators.classification import TensorFlowV2Classifier

        compiled = tf.function(lambda inputs: network(inputs, training=False))
        return TensorFlowV2Classifier(
            model=lambda inputs, training=False: compiled(tf.cast(inputs, "float32")),
            nb_classes=10,
            input_shape=(8, 8, 1),
            loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        )
    if keras.backend.backend() == "torch":
        import torch
        from art.estimators.classification import PyTorchClassifier

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self, inputs):
                return self.network(inputs)

        return PyTorchClassifier(Module(), torch.nn.CrossEntropyLoss(), (8, 8, 1), 10, device_type="cpu")
    raise SystemExit("ART attacks Keras models on TensorFlow and on torch: set KERAS_BACKEND to one of them.")


# %% [markdown]
# ## The attacks
#
# *Projected gradient descent* (PGD) goes uphill in the loss and stays within a ball of given radius; we run it for
# balls of several sizes. *DeepFool* walks to the boundary on the shortest way that it can find. Of all that they
# return, we keep for each image the nearest one that is answered differently. What an attack claims is not taken on
# trust: the model is asked again, and the distance measured in float64.


# %%
def nearest_attack(network, own_answers, sizes):
    """Returns for each image the nearest changed one that is answered differently, and its l2 distance."""
    classifier = art_classifier(network)
    attacks = [
        ProjectedGradientDescent(
            classifier,
            norm=2,
            eps=size,
            eps_step=size / 5,
            max_iter=20,
            num_random_init=1,
            batch_size=len(attacked),
            verbose=False,
        )
        for size in sizes
    ]
    attacks.append(DeepFool(classifier, max_iter=50, batch_size=len(attacked), verbose=False))
    distances, nearest = np.full(len(attacked), np.inf), attacked.copy()
    for attack in attacks:
        changed = attack.generate(attacked).astype("float32")
        moved = changed.astype("float64") - attacked
        lengths = np.sqrt(np.sum(moved**2, axis=(1, 2, 3)))
        broken = np.argmax(network.predict(changed, batch_size=len(attacked), verbose=0), axis=1) != own_answers
        better = broken & (lengths < distances)
        distances[better], nearest[better] = lengths[better], changed[better]
    return distances, nearest


sizes = (0.3, 0.6) if small else (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
distances, nearest, below = {}, {}, {}
for name, network in networks.items():
    distances[name], nearest[name] = nearest_attack(network, answers[name], sizes)
    below[name] = int(np.sum(distances[name] < radii[name]))
    print(
        f"{name:12} median distance of the nearest attack {np.median(distances[name]):.3f}; "
        f"nearer than the certified radius: {below[name]} of {len(attacked)}"
    )

# %% [markdown]
# None is nearer than its radius, in either model: that is what the certificate promises. The attack is not a weak one
# either. Below, each image is a point; none may lie under the line. For the 1-Lipschitz network most lie just above it:
# there, certificate and attack together leave no doubt about where the boundary is. For the ordinary one the
# certificate is not as tight, but the attack settles the matter: its boundary is near.

# %%
figure, axis = plt.subplots(figsize=(5.4, 4.8), layout="constrained")
for name in networks:
    axis.scatter(radii[name], distances[name], s=14, alpha=0.7, label=name)
limit = 1.05 * max(np.max(radii["1-Lipschitz"]), np.max(distances["ordinary"][np.isfinite(distances["ordinary"])]))
axis.plot([0, limit], [0, limit], color="black", linewidth=1)
axis.fill_between([0, limit], [0, limit], color="gray", alpha=0.2, linewidth=0)
axis.annotate("impossible", (0.6 * limit, 0.25 * limit), color="gray")
axis.set(xlim=(0, limit), ylim=(0, 1.2 * limit), xlabel="certified radius", ylabel="l2 distance of the nearest attack")
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## What is left
#
# The share of images that are answered rightly within a distance lies between the certified accuracy and the accuracy
# under attack. For the 1-Lipschitz network the two curves nearly meet.

# %%
limits = np.linspace(0, 1.2, 121)
certified, under_attack = {}, {}
for name in networks:
    right = answers[name] == truth
    certified[name] = np.mean(np.where(right, radii[name], 0)[:, None] > limits, axis=0)
    under_attack[name] = lip.accuracy_under_attack(np.where(right, distances[name], 0), limits)
    print(f"{name:12} at 0.3: certified {certified[name][30]:.1%}, under attack {under_attack[name][30]:.1%}")
lip.plot_certified_accuracy(limits, certified, under_attack, unit="pixels in [0, 1]")
plt.show()

# %% [markdown]
# And this is how it looks: the nearest change that was found for each network. What the 1-Lipschitz one needs is
# larger, and it is known that nothing smaller than its radius does.

# %%
figure, axes = plt.subplots(3, 8, figsize=(9, 3.9), layout="constrained")
for column in range(8):
    pictures = [attacked[column], *(nearest[name][column] for name in networks)]
    titles = [f"{truth[column]}", *(f"{distances[name][column]:.2f}" for name in networks)]
    for axis, picture, title in zip(axes[:, column], pictures, titles, strict=True):
        axis.imshow(picture[..., 0], cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
for axis, name in zip(axes[:, 0], ["image", *networks], strict=True):
    axis.set_ylabel(name)
figure.suptitle("The nearest image that is answered differently, and its l2 distance")
plt.show()

# %% [markdown]
# An attack that fails proves nothing by itself: another may succeed. A certificate that holds needs no attack. The two
# are worth having together, since a certificate that an attack refutes is a bug, which we would like to
# [hear of](https://github.com/deel-ai/deel-lip/issues).
#
# ## What to read next
#
# - [Tutorial 7](07_serve.md): shipping the certificate along with the model.
# - `benchmarks/break_certificates.py` in the repository does this for ten networks and thousands of images.
