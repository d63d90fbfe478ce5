"""Training holds on to nothing from one step to the next."""

import gc
import pathlib

import keras
import pytest

import deel_like_lip as lip

layers = lip.layers
STATUS = pathlib.Path("/proc/self/statm")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only torch keeps what backward functions refer to")
@pytest.mark.skipif(not STATUS.exists(), reason="needs the proc file system")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.SpectralDense(512), (512, 512)),
        (lambda: layers.LipConv2D(4, 3, padding="same"), (16, 64, 64, 4)),
        (lambda: layers.ScaledL2NormPooling2D(), (16, 64, 64, 16)),
    ],
    ids=["dense", "convolution", "pooling"],
)
def test_what_a_step_computed_is_freed(make, shape):
    import torch

    layer = make()
    inputs = torch.ones(shape, requires_grad=True)
    layer.build(shape)

    def held_after(steps):
        for _ in range(steps):
            layer(inputs, training=True).sum().backward()
        gc.collect()  # what is only freed by the next collection is no leak
        return int(STATUS.read_text().split()[1])  # resident pages

    # An output has 1 MiB, which are 256 pages of the usual size. What the allocator keeps varies by some of them.
    before = held_after(5)
    assert held_after(60) - before < 40 * 256
