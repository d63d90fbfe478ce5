"""Plain Keras networks, built and trained without this library, are certified and exported; no attack beats that."""

import ast
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import (
    ROOT,
    convolution_matrix,
    fewer_where_compiled,
    on_torch,
    operator_norm,
    to_numpy,
    vector_jacobian_product,
)

layers = keras.layers
EXAMPLE = ROOT / "examples/certify_plain_model.py"


def normalized(filters, **options):
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.5, **options),
    ]


def plain_cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *normalized(6),
            layers.ReLU(),
            layers.MaxPooling2D(),
            *normalized(8, scale=False),
            layers.Activation("relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(3),
        ]
    )


def pre_activation_net():
    """Batch normalization before the convolution, a residual branch, and average pooling."""
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(6, 3, padding="same")(inputs)
    branch = layers.ReLU()(layers.BatchNormalization(momentum=0.5)(hidden))
    branch = layers.Conv2D(6, 3, padding="same")(branch)
    hidden = layers.AveragePooling2D(2)(layers.Add()([hidden, branch]))
    hidden = layers.BatchNormalization(momentum=0.5, center=False)(hidden)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))


def mlp():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.BatchNormalization(momentum=0.5),
            layers.Dense(16),
            layers.BatchNormalization(momentum=0.5),
            layers.LeakyReLU(),
            layers.Dense(1),
        ]
    )


MODELS = {"cnn": plain_cnn, "pre-activation": pre_activation_net, "mlp": mlp}


def trained(build, tmp_path, rng):
    """Trains as anyone would, saves and loads, with images whose mean and scale are far from 0 and 1."""
    model = build()
    single = model.output_shape[1] == 1
    images = (3 + 2 * rng.normal(size=(256, 8, 8, 1))).astype("float32")
    quarters = images[:, :4, :4].mean((1, 2, 3)), images[:, :4, 4:].mean((1, 2, 3)), images[:, 4:].mean((1, 2, 3))
    labels = np.argmax(quarters, axis=0)
    loss = keras.losses.BinaryCrossentropy if single else keras.losses.SparseCategoricalCrossentropy
    model.compile(keras.optimizers.Adam(1e-2), loss(from_logits=True))
    model.fit(images, labels > 0 if single else labels, batch_size=32, epochs=4, verbose=0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization) and layer.scale:  # of both signs, and of other sizes
            layer.gamma.assign(to_numpy(layer.gamma) * rng.choice([-1.5, 0.3, 1.2], size=layer.gamma.shape))
    model.save(tmp_path / "trained.keras")
    return keras.saving.load_model(tmp_path / "trained.keras"), images


def answers(logits):
    return (logits[:, 0] > 0).astype(int) if logits.shape[1] == 1 else np.argmax(logits, axis=1)


def attack(model, images, radii, steps=30):
    """Returns images within the radii, moved uphill on the margin that is smallest now."""
    clean = answers(to_numpy(model(images)))
    rows = np.arange(len(images))
    moved = images.astype("float64")
    limits = radii.reshape(-1, 1, 1, 1)
    for step in range(steps):
        now = to_numpy(model(moved.astype("float32")))
        weights = np.zeros_like(now)
        if now.shape[1] == 1:
            weights[:, 0] = 1 - 2 * clean
        else:
            rivals = now.copy()
            rivals[rows, clean] = -np.inf
            weights[rows, np.argmax(rivals, axis=1)] = 1
            weights[rows, clean] = -1
        gradient = vector_jacobian_product(model, moved, weights)
        gradient /= np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True)) + 1e-12
        change = moved + gradient * limits * (0.5 if step < steps // 2 else 0.1) - images
        moved = images + change * np.minimum(1, limits / (np.sqrt((change**2).sum((1, 2, 3), keepdims=True)) + 1e-300))
    return clean, moved.astype("float32")


@pytest.mark.parametrize("name", fewer_where_compiled(MODELS, "pre-activation"))
def test_no_attack_beats_the_certificate(name, tmp_path, rng):
    model, images = trained(MODELS[name], tmp_path, rng)
    statistics = [
        (to_numpy(layer.moving_mean), to_numpy(layer.moving_variance))
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]
    assert len(statistics) == 2
    assert max(np.max(np.abs(mean)) for mean, _ in statistics) > 0.5
    assert all(np.ptp(variance) > 0.01 for _, variance in statistics)

    certificate = lip.certify(model, rounding="sound", input_range=(-20, 20))
    radii = certificate.radius(model.predict(images, verbose=0), inputs=images)
    assert np.median(radii) > 1e-3
    clean, attacked = attack(model, images, radii)
    np.testing.assert_array_equal(answers(to_numpy(model(attacked)))[radii > 0], clean[radii > 0])
    # The search is a real one: further out, in reach of a certificate that is too large, it changes answers.
    clean, attacked = attack(model, images, 24 * radii)
    assert np.mean(answers(to_numpy(model(attacked))) != clean) > 0.5


@pytest.mark.parametrize("name", fewer_where_compiled(MODELS, "cnn"))
def test_the_constant_is_not_below_any_slope(name, tmp_path, rng):
    """Not below the gradient of any output at any sample."""
    model, images = trained(MODELS[name], tmp_path, rng)
    constant = lip.certify(model).lipschitz_constant
    largest = 0.0
    for output in range(model.output_shape[1]):
        weights = np.zeros((len(images), model.output_shape[1]))
        weights[:, output] = 1
        gradient = vector_jacobian_product(model, images, weights)
        largest = max(largest, float(np.max(np.sqrt((gradient**2).sum((1, 2, 3))))))
    assert constant / 20 < largest <= constant * (1 + 1e-4)


def test_a_convolution_and_its_batch_normalization_are_bounded_together(rng):
    """The two are one linear map, whose norm on the image of this size is written out."""
    model = keras.Sequential([keras.Input((6, 6, 2)), *normalized(3, epsilon=0.01), layers.Flatten()])
    convolution, normalization = model.layers[:2]
    kernel = rng.normal(size=(3, 3, 2, 3))
    gamma, variance = np.array([-2.0, 0.5, 1.0]), np.array([0.2, 3.0, 0.05])
    convolution.set_weights([kernel])
    normalization.set_weights([gamma, rng.normal(size=3), rng.normal(size=3), variance])
    scaled = kernel.astype("float32") * gamma / np.sqrt(variance.astype("float32").astype("float64") + 0.01)
    exact = operator_norm(convolution_matrix(scaled, 6, padding="same"))
    constant = lip.certify(model, task="regression").lipschitz_constant
    assert exact * (1 - 1e-6) <= constant <= exact * 1.1


def test_it_is_exported_with_its_certificate(tmp_path, rng):
    tensorflow = pytest.importorskip("tensorflow")
    model, images = trained(plain_cnn, tmp_path, rng)
    certificate = lip.export_saved_model(model, tmp_path / "served")
    certificate.verify(model)
    fields = json.loads((tmp_path / "served/assets.extra/certificate.json").read_text(encoding="utf-8"))
    assert fields["lipschitz_constant"] == lip.certify(model).lipschitz_constant
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(lip.vanilla_model(model).predict(images, verbose=0), expected, atol=1e-4)
    served = tensorflow.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(tensorflow.constant(images)).numpy(), expected, atol=1e-4)


# --- the example -----------------------------------------------------------------------------------------------------


def test_the_training_of_the_example_does_not_know_this_library():
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    train = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    names = {node.id for node in ast.walk(train) if isinstance(node, ast.Name)}
    assert {"keras", "load"} <= names
    assert "lip" not in names
    at_the_top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert "keras" in at_the_top
    assert "deel_like_lip" not in at_the_top


@on_torch
def test_the_example_trains_without_this_library(tmp_path):
    code = (
        "import sys; sys.modules['deel_like_lip'] = None; sys.path.insert(0, sys.argv[1]); import pathlib\n"
        "import certify_plain_model; certify_plain_model.train(pathlib.Path('trained.keras'), epochs=1)"
    )
    command = [sys.executable, "-c", code, str(EXAMPLE.parent)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert lip.certify(keras.saving.load_model(tmp_path / "trained.keras")).lipschitz_constant > 0


@on_torch
def test_the_example_runs(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--output", "results"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"on the {keras.backend.backend()} backend" in result.stdout
    assert re.search(r"^batch_normalization +BatchNormalization +\d", result.stdout, re.MULTILINE)
    table = re.findall(r"^ +(\d\.\d\d) +(\d+\.\d\d)% +(clean|certified)$", result.stdout, re.MULTILINE)
    accuracy = {float(radius): float(share) for radius, share, _ in table}
    assert accuracy[0.0] >= 95
    assert accuracy[0.01] >= 85
    assert (tmp_path / "results/served/saved_model.pb").is_file()
