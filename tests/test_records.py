"""The scripts of records at reduced size: what they print and keep is what the saved plain models certify."""

import json

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from examples import cifar10_records, mnist_records
from examples._records import Batches, run
from tests.helpers import on_torch


def records(problem, folder, monkeypatch, capsys, *arguments):
    """Runs a script, and returns the certified accuracies of its recipe by the plain model that it saved, and shown."""
    monkeypatch.setattr("sys.argv", ["records", "--seeds", "1", "--output", str(folder), *arguments])
    run(problem, "", "unused")
    (path,) = folder.glob("*.keras")
    name = path.stem.removesuffix("-0")
    *kept, _ = json.loads((folder / "records.json").read_text())["shares and seconds"][name][0]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))
    assert line.split()[2:-2] == [f"{share:.2f}" for share in kept]
    model = keras.models.load_model(path)
    assert not any(isinstance(layer, lip.layers.LipschitzLayer) for layer in model.layers)
    return kept, model


@on_torch
def test_mnist_records_on_digits(tmp_path, monkeypatch, capsys):
    arguments = ("--dataset", "digits", "--recipes", "balance", "--epochs", "30")
    shares, model = records(mnist_records.PROBLEM, tmp_path, monkeypatch, capsys, *arguments)
    assert shares[0] > 85
    assert shares == sorted(shares, reverse=True)
    images, labels = mnist_records.PROBLEM.datasets["digits"]()[1]
    expected = lip.certified_accuracy(model, (images, labels), mnist_records.PROBLEM.radii)
    np.testing.assert_allclose(shares, 100 * np.array(expected), atol=1e-9)


@on_torch
def test_cifar10_records_on_a_stand_in(tmp_path, monkeypatch, capsys):
    small = cifar10_records.PROBLEM.recipes["li_resnet_small"]
    shrunk = small._replace(build=lambda shape, classes: lip.models.li_resnet(shape, classes, 1, 8, 16), batch_size=64)
    problem = cifar10_records.PROBLEM._replace(recipes={"li_resnet_small": shrunk})
    shares, _ = records(problem, tmp_path, monkeypatch, capsys, "--dataset", "stand-in", "--epochs", "6")
    assert shares[0] > 50  # of ten classes
    assert shares == sorted(shares, reverse=True)


@on_torch
def test_every_cifar10_recipe_builds_and_has_a_loss():
    for name in ("lip_conv_net_xs", "lip_conv_net_xs_aol", "li_resnet_small"):
        recipe = cifar10_records.PROBLEM.recipes[name]
        model = recipe.build((32, 32, 3), 10)
        assert model.output_shape == (None, 10)
        assert float(recipe.loss()(np.zeros(4, int), np.zeros((4, 10), "float32"))) > 0


def test_warps_and_crops_keep_what_they_should(rng):
    images = rng.random((6, 9, 9, 1)).astype("float32")
    np.testing.assert_allclose(mnist_records.warped(images, rng, strength=0.0), images, atol=1e-6)
    moved = mnist_records.warped(images, rng)
    assert moved.dtype == images.dtype
    assert 0.01 < np.mean(np.abs(moved - images)) < 0.5
    assert np.all((moved >= 0) & (moved <= images.max(axis=(1, 2, 3), keepdims=True)))
    ones = np.ones((50, 32, 32, 3), "float32")
    cropped = cifar10_records.cropped(ones, rng)
    assert set(np.unique(cropped)) == {0.0, 1.0}
    rows = cropped[:, :, 16, 0].sum(axis=1)
    assert rows.min() == 28
    assert rows.max() == 32


def test_an_epoch_shows_each_image_once():
    images, labels = np.arange(10, dtype="float32").reshape(10, 1, 1, 1), np.arange(10)
    batches = Batches(images, labels, mnist_records.PROBLEM.recipes["radius"]._replace(batch_size=5), seed=0)
    seen = np.concatenate([batches[i][1] for i in range(len(batches))])
    assert sorted(seen) == list(range(10))
    batches.on_epoch_end()
    assert list(seen) != list(np.concatenate([batches[i][1] for i in range(len(batches))]))


@pytest.mark.parametrize(("argument", "value"), [("--seeds", "0"), ("--epochs", "-1"), ("--dataset", "imagenet")])
def test_wrong_arguments_are_refused(argument, value, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["records", argument, value])
    with pytest.raises(SystemExit):
        run(mnist_records.PROBLEM, "", "unused")
    assert argument in capsys.readouterr().err
