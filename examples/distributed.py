"""Train on one device and on several by the same script, and compare what comes out.

    KERAS_BACKEND=jax python examples/distributed.py           # Keras's DataParallel and ModelParallel, 8 devices
    KERAS_BACKEND=tensorflow python examples/distributed.py    # tf.distribute.MirroredStrategy, 4 devices
    KERAS_BACKEND=torch python examples/distributed.py         # torch's DistributedDataParallel, 2 processes

Devices are made of the processor: no accelerator is needed. The samples of each batch are sorted by class, so that most
devices see one class only. That is why the losses have `class_proportions`; `--batch-means` shows what happens without.
Printed are the largest differences of losses and weights between one device and several, and both constants.
"""

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings
# For JAX, before it is imported: its devices, and threads enough for devices that wait for each other.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("NPROC", "64")

import keras
import numpy as np
import numpy.typing as npt

import deel_like_lip as lip

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

DEVICES = {"jax": 8, "tensorflow": 4}
PROCESSES = 2
SHARES = (0.6, 0.3, 0.1)
BATCH, STEPS, EPOCHS = 64, 5, 10


class Trained(NamedTuple):
    model: keras.Model
    losses: list[float]  # of each epoch


def main() -> None:
    options = parse_arguments()
    backend = keras.backend.backend()
    if backend == "torch" and "RANK" not in os.environ:
        # As on real machines: torch's launcher starts this script once for each device.
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
        raise SystemExit(subprocess.run([*launcher, *sys.argv], check=False).returncode)
    make_devices(backend)
    for name in ("HingeKR", "MulticlassHKR"):
        compare(name, options, WAYS[backend])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=["SGD", "Adam"], default="SGD")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate (default: %(default)s)")
    parser.add_argument("--batch-means", action="store_true", help="train without `class_proportions`")
    return parser.parse_args()


def make_devices(backend: str) -> None:
    """Makes the devices of TensorFlow, or joins torch's processes; JAX makes its devices when it is imported."""
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_inter_op_parallelism_threads(8 * DEVICES[backend])  # they wait for each other, too
        (processor,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            processor, [tf.config.LogicalDeviceConfiguration()] * DEVICES[backend]
        )
    elif backend == "torch":
        import torch

        torch.distributed.init_process_group("gloo")


def compare(name: str, options: argparse.Namespace, ways: dict[str, Callable[..., Trained]]) -> None:
    """Trains on one device, then in each way on several, and prints by how much they differ."""
    inputs, labels = samples(name)

    def compiled() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = network(1 if name == "HingeKR" else len(SHARES))
        proportions = None if options.batch_means else SHARES[:1] if name == "HingeKR" else SHARES
        loss = getattr(lip.losses, name)(alpha=10.0, min_margin=0.3, class_proportions=proportions)
        model.compile(getattr(keras.optimizers, options.optimizer)(options.rate), loss)
        return model

    alone = fit(compiled(), inputs, labels)
    for way, train in ways.items():
        together = train(compiled, inputs, labels)
        if int(os.environ.get("RANK", 0)):
            continue
        weights = zip(alone.model.get_weights(), together.model.get_weights(), strict=True)
        constants = [lip.certify(trained.model).lipschitz_constant for trained in (alone, together)]
        print(
            f"{way}, {name}: losses differ by {np.max(np.abs(np.subtract(alone.losses, together.losses))):.1e}, "
            f"weights by {max(np.max(np.abs(first - second)) for first, second in weights):.1e}; "
            f"constants {constants[0]:.6f} and {constants[1]:.6f}"
        )


def samples(name: str) -> tuple[Array, Labels]:
    """Returns noisy class centres and their labels, the samples of each batch sorted by class."""
    rng = np.random.default_rng(0)
    labels = rng.choice(len(SHARES), BATCH * STEPS, p=SHARES)
    labels = np.sort(labels.reshape(STEPS, BATCH), axis=1).reshape(-1)
    centres = rng.standard_normal(size=(len(SHARES), 16))
    inputs = (centres[labels] + rng.standard_normal(size=(len(labels), 16))) / 4
    return inputs.astype("float32"), (labels == 0).astype("int64") if name == "HingeKR" else labels


def network(outputs: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16,)),
            lip.layers.SpectralDense(64, name="hidden_1"),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(64, name="hidden_2"),
            lip.layers.GroupSort2(),
            lip.layers.SpectralDense(outputs, name="head"),
        ]
    )


def fit(model: keras.Model, inputs: Array, labels: Labels) -> Trained:
    callbacks = [lip.callbacks.RenormalizeCallback()]
    history = model.fit(inputs, labels, batch_size=BATCH, epochs=EPOCHS, shuffle=False, callbacks=callbacks, verbose=0)
    return Trained(model, history.history["loss"])


# --- on several devices ----------------------------------------------------------------------------------------------

Compiled = Callable[[], keras.Model]


def data_parallel(compiled: Compiled, inputs: Array, labels: Labels) -> Trained:
    """On JAX: each device has all kernels and a part of each batch."""
    return fit_on(keras.distribution.DataParallel(devices=keras.distribution.list_devices()), compiled, inputs, labels)


def model_parallel(compiled: Compiled, inputs: Array, labels: Labels) -> Trained:
    """On JAX: the batch is split in two, and the hidden kernels in four by their columns."""
    mesh = keras.distribution.DeviceMesh(
        (2, DEVICES["jax"] // 2), ["batch", "model"], keras.distribution.list_devices()
    )
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*hidden.*kernel"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    trained = fit_on(distribution, compiled, inputs, labels)
    for layer in trained.model.layers:
        if layer.name.startswith("hidden"):
            shape = layer.kernel.value.addressable_shards[0].data.shape
            print(f"{layer.name}: of the kernel of shape {layer.kernel.shape} each device has a part of shape {shape}")
    return trained


def fit_on(distribution: Any, compiled: Compiled, inputs: Array, labels: Labels) -> Trained:
    keras.distribution.set_distribution(distribution)
    try:
        return fit(compiled(), inputs, labels)
    finally:
        keras.distribution.set_distribution(None)


def mirrored(compiled: Compiled, inputs: Array, labels: Labels) -> Trained:
    """On TensorFlow: each device has all kernels and a part of each batch."""
    with mirrored_strategy().scope():
        model = compiled()
    return fit(model, inputs, labels)


@functools.cache
def mirrored_strategy() -> Any:
    """Returns the one strategy of this process: what a second one computes may be cancelled when the first goes."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU"))


def distributed_data_parallel(compiled: Compiled, inputs: Array, labels: Labels) -> Trained:
    """On torch: each process has all kernels and a part of each batch. Keras leaves the loop to you."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = compiled()
    optimizer, weights = model.optimizer, model.trainable_weights
    parallel = DistributedDataParallel(model)  # averages gradients in `backward`
    rank, size = torch.distributed.get_rank(), BATCH // torch.distributed.get_world_size()
    losses = torch.zeros(EPOCHS)
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            part = slice(step * BATCH + rank * size, step * BATCH + (rank + 1) * size)
            parallel.zero_grad()
            loss = model.loss(torch.from_numpy(labels[part]), parallel(torch.from_numpy(inputs[part]), training=True))
            loss.backward()
            with torch.no_grad():
                optimizer.apply([weight.value.grad for weight in weights], weights)  # which also projects
            losses[epoch] += loss.detach() / STEPS
        lip.renormalize(model)
    torch.distributed.all_reduce(losses)
    return Trained(model, (losses / torch.distributed.get_world_size()).tolist())


WAYS: dict[str, dict[str, Callable[..., Trained]]] = {
    "jax": {"DataParallel": data_parallel, "ModelParallel": model_parallel},
    "tensorflow": {"MirroredStrategy": mirrored},
    "torch": {"DistributedDataParallel": distributed_data_parallel},
}

if __name__ == "__main__":
    main()
