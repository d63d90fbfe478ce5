# %% [markdown]
# # 9. Training on several devices
#
# Keras splits each batch among the devices of a machine. What becomes of constraints, and of a loss that compares the
# means of two classes, when each device sees a part of the batch? You will
#
# - train on one device and on four, and compare the kernels that come out;
# - see which losses need `class_proportions`, and why;
# - learn what does not work.
#
# You need no GPU for that: JAX and TensorFlow both make several devices of one processor if they are told to. Set
# `KERAS_BACKEND` to one of the two. On real GPUs leave out the lines that make devices, and the rest stays.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"  # for JAX; before it is imported
os.environ["NPROC"] = "32"  # threads for JAX: of four devices that wait for each other some may find none

import keras
import numpy as np
from sklearn.datasets import make_moons

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
backend = keras.backend.backend()
if backend == "tensorflow":
    import tensorflow as tf

    (processor,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 4)
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
elif backend == "jax":
    names = keras.distribution.list_devices("cpu")
else:
    raise SystemExit("Keras distributes training on JAX and on TensorFlow: set KERAS_BACKEND to one of them.")
devices = len(names)
print(f"{backend} has {devices} devices: {names}")

# %% [markdown]
# ## Data that is not balanced
#
# Two moons, with one sample of the first class in three, so that the parts of a batch have different shares of it.

# %%
x, y = make_moons((1024, 512), noise=0.07, random_state=0)
x = x.astype("float32")
epochs = 4 if small else 20


def compiled(loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            lip.layers.SpectralDense(32),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(32),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01), loss)
    return model


def trained(model):
    renormalize = lip.callbacks.RenormalizeCallback()
    model.fit(x, y, batch_size=128, epochs=epochs, shuffle=False, callbacks=[renormalize], verbose=0)
    return model


# %% [markdown]
# ## The loss
#
# The KR term is a difference of two means, one over each class. The mean over a whole batch is not the mean of the
# means over its parts, unless all parts have as many samples of each class. So it matters what the engine does:
#
# - **JAX** (`keras.distribution.DataParallel`) treats the batch as one array that happens to lie on several devices.
#   Sums go over all of it. Every loss is what it is on one device.
# - **TensorFlow** (`tf.distribute.MirroredStrategy`) computes the loss of each part by itself and averages. For the KR
#   term that is another function. With `class_proportions`, the share of samples with label 1, the loss is a mean of
#   terms that depend on one sample each, $-f / p$ or $f / (1 - p)$, and then parts do not matter.
#
# The expected value is the same, as long as no part lacks a class; `class_proportions` has the larger variance, since
# the number of samples of a class in a batch varies around its expectation.

# %%
share = float(np.mean(y))
losses = {
    "means of the batch": lambda: lip.losses.HingeKR(alpha=10.0, min_margin=0.15),
    "class_proportions": lambda: lip.losses.HingeKR(alpha=10.0, min_margin=0.15, class_proportions=share),
}

# %% [markdown]
# ## One device and four
#
# On JAX a distribution is set for the whole process before the model is made. On TensorFlow the model is made within
# the scope of a strategy. `fit` is the same.


# %%
def trained_on_all(loss):
    if backend == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=names))
        try:
            return trained(compiled(loss))
        finally:
            keras.distribution.set_distribution(None)
    with tf.distribute.MirroredStrategy(names).scope():
        model = compiled(loss)
    return trained(model)


models, apart = {}, {}
for name, loss in losses.items():
    alone, together = trained(compiled(loss())), trained_on_all(loss())
    weights = zip(alone.get_weights(), together.get_weights(), strict=True)
    apart[name] = max(float(np.max(np.abs(first - second))) for first, second in weights)
    models[name] = alone, together
    print(f"{name}: the kernels after {epochs} epochs differ by at most {apart[name]:.1e}")

# %% [markdown]
# The constraint is part of what is computed on the devices: each kernel is projected after each update, and so the
# certificate is that of a network which was trained on one device.

# %%
constants = {}
for name, (alone, together) in models.items():
    constants[name] = [lip.certify(model).lipschitz_constant for model in (alone, together)]
    accuracy = [float(np.mean((model.predict(x, batch_size=512, verbose=0)[:, 0] > 0) == y)) for model in models[name]]
    print(f"{name}: constants {constants[name][0]:.6f} and {constants[name][1]:.6f}, ", end="")
    print(f"right on {accuracy[0]:.1%} and {accuracy[1]:.1%}")

# %% [markdown]
# ## What does not work, and what to do instead
#
# - **TensorFlow without `class_proportions`** trains, and its certificate is right, but the loss is not the one that
#   you asked for: small parts of a batch may even lack a class, and then have no KR term at all. Give the proportions.
# - **The same numbers, bit by bit.** Sums over parts are added in another order, so kernels agree up to rounding only.
#   Where training is unstable, as with a large learning rate, that difference grows with each step, as it does with any
#   network. (With `SGD(0.05, momentum=0.9)` instead of `SGD(0.01)`, the kernels above soon have nothing in common.)
# - **torch.** Keras does not distribute `fit` there. Write the loop yourself with torch's `DistributedDataParallel`: it
#   is in [Several devices and hosts](../distribution.md#one-host), as are several hosts, accumulated gradients and
#   kernels that are split among devices.
# - **Certifying** is done in NumPy on the main processor, from the weights wherever they are: there is nothing to
#   distribute.
#
# ## What to read next
#
# - [Tutorial 7](07_serve.md): what becomes of the network once it is trained.
# - Keras's guide on
#   [distributed training with JAX](https://keras.io/guides/distributed_training_with_jax/), and TensorFlow's on
#   [`tf.distribute`](https://www.tensorflow.org/guide/distributed_training).
