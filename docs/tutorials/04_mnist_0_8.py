# %% [markdown]
# # 4. Zeros and eights: robustness, and gradients as transport
#
# A hinge-KR classifier learns a plan for moving one class onto the other. Its gradient shows, for each image, which way
# the plan takes, and the value how far it is to the boundary. You will
#
# - train a classifier of zeros and eights with a certificate;
# - see that its gradient has length 1, and what it looks like next to that of an ordinary network;
# - follow it from a zero to an eight.
#
# [Tutorial 3](03_two_moons.md) shows the same in the plane. With MNIST, where tensorflow-datasets has it prepared, this
# takes about half a minute; scikit-learn's small digits take its place elsewhere.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import keras
import matplotlib.pyplot as plt
import numpy as np

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
has_mnist = os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")) and not small
keras.utils.set_random_seed(0)

# %%
if has_mnist:
    import tensorflow_datasets as tfds

    data = tfds.as_numpy(tfds.load("mnist", split=["train", "test"], batch_size=-1, as_supervised=True, download=False))
    (x_train, y_train), (x_test, y_test) = (
        (images[np.isin(digits, (0, 8))].astype("float32") / 255, digits[np.isin(digits, (0, 8))] == 8)
        for images, digits in data
    )
    margin, radii, epochs, batch_size = 1.0, (0.0, 0.5, 1.0, 2.0, 3.0), 6, 128
else:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    chosen = np.isin(digits, (0, 8))
    images = (images[chosen] / 16).astype("float32").reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(images, digits[chosen] == 8, train_size=256, random_state=0)
    margin, radii, epochs, batch_size = 0.5, (0.0, 0.25, 0.5, 0.75, 1.0), 15 if small else 60, 32
y_train, y_test = y_train.astype("float32"), y_test.astype("float32")  # 1: an eight
print(f"{len(x_train)} images to train on, {len(x_test)} to test, of shape {x_train.shape[1:]}, pixels in [0, 1]")

# %% [markdown]
# ## Two networks of the same size
#
# `dense_net` builds a network of orthogonal layers and sorts. The other one is ordinary.

# %%
shape = x_train.shape[1:]
model = lip.models.dense_net(shape, classes=1, units=(128, 64, 32))
steps = epochs * len(x_train) // batch_size
model.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)),
    lip.losses.HingeKR(alpha=10.0, min_margin=margin),
)
renormalize = lip.callbacks.RenormalizeCallback()
model.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, callbacks=[renormalize], verbose=0)

plain = keras.Sequential(
    [
        keras.Input(shape),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(1),
    ]
)
plain.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
plain.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=0)

# %% [markdown]
# ## Certified accuracy
#
# The radius of an image is $|f(x)| / L$. Zeros and eights are far apart, so radii are large.

# %%
certificate = lip.certify(model)
plain_certificate = lip.certify(plain)
values = model.predict(x_test, batch_size=512, verbose=0)
plain_values = plain.predict(x_test, batch_size=512, verbose=0)
certified = certificate.certified_accuracy(values, y_test, radii)
plain_certified = plain_certificate.certified_accuracy(plain_values, y_test, radii)
print(f"constants: {certificate.lipschitz_constant:.4f}, ordinary {plain_certificate.lipschitz_constant:.1f}")
print("l2 radius  hinge-KR  ordinary")
for radius, ours, theirs in zip(radii, certified, plain_certified, strict=True):
    print(f"{radius:9.2f}  {ours:8.1%}  {theirs:8.1%}")

# %% [markdown]
# ## The gradient
#
# Keras has no function for the gradient by the input that is the same on all backends, so here are three.


# %%
def gradient(network, inputs):
    """Returns for each image the gradient of the network's output by the image."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensor = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            total = tf.reduce_sum(network(tensor))
        return tape.gradient(total, tensor).numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(lambda tensor: network(tensor).sum())(jax.numpy.asarray(inputs)))
    import torch

    tensor = torch.tensor(inputs, requires_grad=True)
    return torch.autograd.grad(network(tensor).sum(), tensor)[0].cpu().numpy()


gradients, plain_gradients = gradient(model, x_test), gradient(plain, x_test)
lengths, plain_lengths = (
    np.linalg.norm(found.reshape(len(found), -1), axis=1) for found in (gradients, plain_gradients)
)
for name, found in (("hinge-KR", lengths), ("ordinary", plain_lengths)):
    print(f"{name}: lengths of gradients from {found.min():.3f} to {found.max():.3f}, median {np.median(found):.3f}")

# %% [markdown]
# No gradient of a 1-Lipschitz network can be longer than 1. These are as long as they can be: along them, the
# network uses all of its constant. That is what theory says of the best $f$ in the KR term, almost everywhere, and what
# orthogonal layers can follow.
#
# ## Transport
#
# So $f$ falls at slope 1 along $-\nabla f$, and an image with the value $f(x)$ should reach the boundary after a way of
# that length: at $x - f(x) \nabla f(x)$. Twice as far, it should look like one of the other class.

# %%
scale = values.reshape(-1, 1, 1, 1)
boundary = x_test - scale * gradients
beyond = x_test - 2 * scale * gradients
at_boundary, after = (model.predict(images, batch_size=512, verbose=0) for images in (boundary, beyond))
crossed = float(np.mean((after > 0) != (values > 0)))
print(
    f"median |f| of the test images {np.median(np.abs(values)):.3f}, after one way {np.median(np.abs(at_boundary)):.3f}"
)
print(f"after two ways, {crossed:.1%} of the images have crossed the boundary")

# %%
chosen = [*np.flatnonzero(y_test == 0)[:4], *np.flatnonzero(y_test == 1)[:4]]
rows = {
    "image": x_test,
    "gradient": gradients,
    "to the boundary": boundary,
    "twice as far": beyond,
    "four times": x_test - 4 * scale * gradients,
    "gradient,\nordinary": plain_gradients,
}
figure, axes = plt.subplots(len(rows), len(chosen), figsize=(9, 7), layout="constrained")
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for axis, index in zip(row, chosen, strict=True):
        picture = pictures[index, ..., 0]
        if "gradient" in name:
            limit = np.max(np.abs(picture))
            axis.imshow(picture, cmap="RdBu", vmin=-limit, vmax=limit)
        else:
            axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=9)
plt.show()

# %% [markdown]
# The gradient of the certified network has the shape of what is to be changed: a bar through the zero, and away with
# the waist of the eight (blue raises the value, towards "eight"; red lowers it). An adversarial example for this
# network is not a picture with noise that nobody sees; it is a picture of the other digit. The gradient of the ordinary
# network, in the last row, is spread over more of the image, and is several times as long: there, a small change goes a
# long way.
#
# ## What to read next
#
# - [Tutorial 5](05_multiclass.md): all ten digits.
# - [Tutorial 6](06_attack.md): what happens when an attack follows the gradient.
# - Serrurier et al., 2023, [On the explainable properties of 1-Lipschitz neural networks: an optimal transport
#   perspective](https://arxiv.org/abs/2206.06854).
