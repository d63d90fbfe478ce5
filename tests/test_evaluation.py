"""Certified accuracy over datasets of every kind, the same as by hand, and its picture."""

import sys

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.certificates import CertificateError
from deel_like_lip.evaluation import accuracy_under_attack, certified_accuracy, plot_certified_accuracy

layers = lip.layers
RADII = [0.0, 0.2, 0.5, 1.0, 3.0]


def classifier(outputs=3):
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.SpectralDense(8, activation=layers.GroupSort2()),
            layers.SpectralDense(outputs),
        ],
        name="classifier",
    )


def data(count=50, outputs=3):
    rng = np.random.default_rng(0)
    return 2 * rng.normal(size=(count, 6)).astype("float32"), rng.integers(0, max(outputs, 2), count)


def by_hand(model, x, y, radii=RADII, weights=None, **options):
    radius = lip.certify(model, **options).radius(model.predict(x, verbose=0), targets=y, inputs=x)
    return [np.average(radius > limit, weights=weights) for limit in radii]


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, batch_size=16):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.x[part], self.y[part]


class EndlessBatches(Batches):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return super().__getitem__(index % 3)


def tf_dataset(x, y):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


def torch_loader(x, y):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=16)


def batch_list(x, y):
    return [Batches(x, y)[index] for index in range(4)]


SOURCES = {
    "arrays": lambda x, y: (x, y),
    "float64": lambda x, y: (x.astype("float64"), y.tolist()),
    "backend": lambda x, y: (keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)),
    "tf.data": tf_dataset,
    "tf.data, unknown length": lambda x, y: tf_dataset(x, y).filter(lambda inputs, labels: True),
    "PyDataset": Batches,
    "DataLoader": torch_loader,
    "list": batch_list,
    "generator": lambda x, y: iter(batch_list(x, y)),
    "a batch that is larger, and an empty one": lambda x, y: [(x[:5], y[:5]), (x[:0], y[:0]), (x[5:], y[5:])],
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_every_kind_of_data_gives_what_is_computed_by_hand(source, capsys):
    model = classifier()
    x, y = data()
    expected = by_hand(model, x, y)
    assert 1 > expected[0] > expected[2] > 0
    shares = certified_accuracy(model, source(x, y), RADII, batch_size=16)
    assert shares.shape == (len(RADII),)
    assert shares.dtype == np.float64
    np.testing.assert_allclose(shares, expected, rtol=1e-12)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("outputs", [1, 4])
def test_one_output_and_one_hot_labels(outputs):
    model = classifier(outputs)
    x, y = data(outputs=outputs)
    shares = certified_accuracy(model, (x, y), RADII)
    np.testing.assert_allclose(shares, by_hand(model, x, y))
    other = 2 * y - 1 if outputs == 1 else np.eye(outputs)[y]
    np.testing.assert_array_equal(certified_accuracy(model, (x, other), RADII), shares)


def test_several_labels():
    model = classifier()
    x, _ = data()
    y = (model.predict(x, verbose=0) > 0) ^ (np.arange(len(x)) % 5 == 0)[:, None]
    certificate = lip.certify(model, task="multilabel")
    shares = certified_accuracy(model, (x, y), RADII, certificate=certificate)
    np.testing.assert_allclose(shares, by_hand(model, x, y, task="multilabel"))
    assert shares[0] == 0.8


@pytest.mark.parametrize("form", ["list", "dict"])
def test_several_inputs_and_outputs(form, rng):
    """Inputs of different shapes, which a dict may name in any order."""
    left, right = keras.Input((6,), name="zebra"), keras.Input((4,), name="ape")
    body = layers.SpectralDense(8)(keras.layers.Concatenate()([left, right]))
    outputs = {"kind": layers.SpectralDense(3)(body), "sign": layers.SpectralDense(1)(body)}
    if form == "dict":
        model = keras.Model({"zebra": left, "ape": right}, outputs)
    else:
        model = keras.Model([left, right], list(outputs.values()))
    x = [rng.normal(size=(40, 6)).astype("float32"), rng.normal(size=(40, 4)).astype("float32")]
    y = [rng.integers(0, 3, 40), rng.integers(0, 2, 40)]
    if form == "dict":
        x, y = {"zebra": x[0], "ape": x[1]}, {"sign": y[1], "kind": y[0]}
    certificate = lip.certify(model, input_range=(-10, 10), rounding="sound")
    inputs = [x["ape"], x["zebra"]] if form == "dict" else x  # in the order of the certificate, by name
    radius = certificate.radius(model.predict(x, verbose=0), targets=y, inputs=inputs)
    expected = [np.mean(radius > limit) for limit in RADII]
    assert 0 < expected[1] < expected[0] < 1
    shares = certified_accuracy(model, (x, y), RADII, certificate=certificate, batch_size=16)
    np.testing.assert_allclose(shares, expected)
    if form == "dict":
        reverse = dict(reversed(x.items()))
        shares = certified_accuracy(model, (reverse, y), RADII, certificate=certificate)
        np.testing.assert_allclose(shares, expected)
        with pytest.raises(ValueError, match=r"with the inputs \['ape', 'zebra'\] of the model. Received: \['ape'\]"):
            certified_accuracy(model, ({"ape": x["ape"]}, y), RADII)
        with pytest.raises(ValueError, match="one weight a sample for all outputs together. Received: dict"):
            certified_accuracy(model, (x, y, {"kind": np.ones(40)}), RADII)
    else:
        with pytest.raises(ValueError, match=r"with the inputs \[.*\] of the model. Received: 1"):
            certified_accuracy(model, (x[:1], y), RADII)


def test_a_model_with_a_fixed_batch_size():
    body = classifier()
    inputs = keras.Input((6,), batch_size=7)
    model = keras.Model(inputs, body(keras.ops.reshape(inputs, (7, 6))))
    x, y = data(40)
    expected = by_hand(body, x, y)
    np.testing.assert_allclose(certified_accuracy(model, (x, y), RADII), expected)
    np.testing.assert_allclose(certified_accuracy(model, [(x[:3], y[:3]), (x[3:], y[3:])], RADII), expected)


def test_weights_count_as_shares():
    model = classifier()
    x, y = data()
    weights = np.random.default_rng(1).uniform(0, 3, len(x))
    expected = by_hand(model, x, y, weights=weights)
    np.testing.assert_allclose(certified_accuracy(model, (x, y, weights), RADII, batch_size=16), expected)
    batches = [(x[:10], y[:10], weights[:10, None]), (x[10:], y[10:], weights[10:, None])]
    np.testing.assert_allclose(certified_accuracy(model, batches, RADII), expected)
    assert np.all(certified_accuracy(model, (x, y, np.full(len(x), 0.1)), RADII) <= 1)
    np.testing.assert_allclose(certified_accuracy(model, (x, y, None), RADII), by_hand(model, x, y))
    with pytest.raises(ValueError, match="with weights that are not all 0. Received: 50 samples in 1 batches"):
        certified_accuracy(model, (x, y, 0 * weights), RADII)
    for bad in (-weights, weights * np.nan, weights[:, None] * np.ones(2)):
        with pytest.raises(ValueError, match="one finite weight of at least 0 for each sample. Received: sample_w"):
            certified_accuracy(model, (x, y, bad), RADII)


@pytest.mark.parametrize("rounding", ["exact", "sound"])
def test_inputs_that_were_not_promised_are_not_certified(rounding):
    model = classifier()
    x, _ = data()
    y = np.argmax(model.predict(x, verbose=0), axis=1)
    certificate = lip.certify(model, rounding=rounding, input_range=(-50.0, 50.0))
    shares = certified_accuracy(model, (x, y), [0.0], certificate=certificate)
    assert shares[0] > 0.9
    spoiled = x.astype("float64")
    spoiled[:5, 0] = [np.nan, np.inf, -np.inf, 1e300, 51]  # 1e300 is infinite as a float32
    fine = certificate.radius(model.predict(x, verbose=0), inputs=x)[5:] > 0
    shares = certified_accuracy(model, (spoiled, y), [0.0], certificate=certificate)
    np.testing.assert_allclose(shares, np.sum(fine) / len(x))
    # Images of the wrong scale: nothing is certified, not even the answer as it is.
    assert not certified_accuracy(model, (100 + x, y), [0.0], certificate=certificate)


def test_radii_are_in_the_units_of_the_certificate():
    model = classifier()
    x, y = data()
    certificate = lip.certify(model, input_scale=1 / 255)
    shares = certified_accuracy(model, (x, y), [255 * radius for radius in RADII], certificate=certificate)
    np.testing.assert_allclose(shares, by_hand(model, x, y))


def test_data_without_an_end():
    model = classifier()
    x, y = data(48)
    endless = [EndlessBatches(x, y), (pair for _ in range(10**9) for pair in batch_list(x, y)[:3])]
    expected = by_hand(model, x, y)
    for source in endless:
        np.testing.assert_allclose(certified_accuracy(model, source, RADII, steps=3), expected)
    with pytest.raises(ValueError, match="Expected `steps`, since the `data` has no end. Received: steps=None"):
        certified_accuracy(model, endless[0], RADII)
    pytest.importorskip("tensorflow")
    repeated = tf_dataset(x, y).repeat()
    np.testing.assert_allclose(certified_accuracy(model, repeated, RADII, steps=3), expected)
    with pytest.raises(ValueError, match="Expected `steps`, since the `data` has no end"):
        certified_accuracy(model, repeated, RADII)


def test_steps_are_a_limit():
    model = classifier()
    x, y = data()
    first = by_hand(model, x[:32], y[:32])
    np.testing.assert_allclose(certified_accuracy(model, (x, y), RADII, batch_size=16, steps=2), first)
    np.testing.assert_allclose(certified_accuracy(model, Batches(x, y), RADII, steps=2), first)
    np.testing.assert_allclose(certified_accuracy(model, Batches(x, y), RADII, steps=99), by_hand(model, x, y))


def test_the_progress_bar(capsys):
    model = classifier()
    x, y = data()
    for source, count in [((x, y), "4/4"), (Batches(x, y), "4/4"), (iter(batch_list(x, y)), "4/Unknown")]:
        certified_accuracy(model, source, RADII, batch_size=16, verbose=1)
        assert count in capsys.readouterr().out


def test_only_the_models_own_certificate_counts():
    model = classifier()
    x, y = data()
    certificate = lip.Certificate.from_json(lip.certify(model).to_json())
    shares = certified_accuracy(lip.vanilla_model(model), (x, y), RADII, certificate=certificate)
    np.testing.assert_allclose(shares, by_hand(model, x, y))
    model.layers[0].kernel.assign(2 * keras.ops.convert_to_numpy(model.layers[0].kernel))
    words = (
        "The certificate of the model 'classifier' was computed from other weights, or .* than those of 'classifier'"
    )
    with pytest.raises(CertificateError, match=words):
        certified_accuracy(model, (x, y), RADII, certificate=certificate)


X, Y = data(8)
BAD_DATA = {
    "no labels": (X, r"there must be labels y. Received: ndarray"),
    "labels None": ((X, None), r"must be labels y. Received: \['ndarray', 'NoneType'\]"),
    "one array": ((X,), r"must be labels y. Received: \['ndarray'\]"),
    "batches without labels": ([X, X], r"must be labels y. Received: ndarray"),
    "dict": ({"image": X, "label": Y}, "must be labels y. Received: dict"),
    "batches of dicts": ([{"image": X, "label": Y}], "must be labels y. Received: dict"),
    "nothing": (None, "must be labels y. Received: NoneType"),
    "empty arrays": ((X[:0], Y[:0]), "with at least one sample. Received: 0 samples in 0 batches"),
    "no batches": ([], "with at least one sample. Received: 0 samples in 0 batches"),
    "empty batches": ([(X[:0], Y[:0])], "with at least one sample. Received: 0 samples in 1 batches"),
    "lengths": ((X, Y[:5]), r"as many inputs as labels and weights. Received: arrays of shapes \[\(8, 6\), \(5,\)\]"),
    "weights": ((X, Y, Y[:5]), r"as many inputs as labels and weights. Received: arrays of shapes .*\(5,\)\]"),
    "single samples": ([(X[0], Y[0])], r"in batches.* Received: arrays of shapes \[\(6,\), \(\)\]"),
    "shape": ((X[:, :5], Y), r"inputs of shape \(None, 6\). Received: inputs of shape \(8, 5\)"),
    "rank": ((X[..., None], Y), r"inputs of shape \(None, 6\). Received: inputs of shape \(8, 6, 1\)"),
    "labels of another shape": ((X, np.ones((8, 2))), "one label a sample for the output"),
}


@pytest.mark.parametrize(("source", "words"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_data_that_does_not_fit(source, words):
    with pytest.raises(ValueError, match=words):
        certified_accuracy(classifier(), source, RADII)


@pytest.mark.parametrize("radii", [[], [-0.1], [0.1, np.nan], [np.inf], 0.5, [[0.1]]])
def test_bad_radii(radii):
    with pytest.raises(ValueError, match="`radii` to be a list of finite l2 distances of at least 0. Received: radii="):
        certified_accuracy(classifier(), (X, Y), radii)


@pytest.mark.parametrize("argument", ["batch_size", "steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_counts(argument, value):
    words = f"Expected `{argument}` to be a positive integer. Received: {argument}={value}"
    with pytest.raises(ValueError, match=words):
        certified_accuracy(classifier(), (X, Y), RADII, **{argument: value})


def test_regression_has_no_accuracy():
    model = classifier()
    words = r"Received: a certificate by which the output '.*' has none \(regression\)"
    with pytest.raises(ValueError, match=words):
        certified_accuracy(model, (X, Y), RADII, certificate=lip.certify(model, task="regression"))


# --- the picture -----------------------------------------------------------------------------------------------------


def test_accuracy_under_attack():
    shares = accuracy_under_attack([0.0, 0.4, 1.0, np.inf], [0.0, 0.4, 0.5, 2.0])
    np.testing.assert_array_equal(shares, [0.75, 0.5, 0.5, 0.25])
    for bad in ([], [[0.1]], 0.3, [np.nan], [-1.0]):
        with pytest.raises(ValueError, match="`distances` to be one distance of at least 0.* Received: distances of"):
            accuracy_under_attack(bad, [0.0])


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    radii, certified, attacked = [0.0, 0.5, 1.0], [0.9, 0.6, 0.2], [0.9, 0.7, 0.5]
    before = plt.get_fignums()
    axes = plot_certified_accuracy(radii, certified, attacked, path=tmp_path / "one.png", unit="pixels in [0, 1]")
    assert (tmp_path / "one.png").stat().st_size > 5000
    assert plt.get_fignums() == before
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"certified", "under attack"} == {text.get_text() for text in axes.get_legend().get_texts()}
    np.testing.assert_allclose(lines["certified"].get_xydata(), np.transpose([radii, np.multiply(100, certified)]))
    np.testing.assert_allclose(lines["under attack"].get_ydata(), np.multiply(100, attacked))
    assert (lines["certified"].get_linestyle(), lines["under attack"].get_linestyle()) == ("-", "--")
    assert axes.get_xlabel() == "l2 radius (pixels in [0, 1])"
    assert axes.get_ylabel() == "accuracy (% of samples)"

    figure, own = plt.subplots()
    models = {"small": certified, "large": attacked}
    axes = plot_certified_accuracy(radii, models, {"small": attacked}, ax=own, path=tmp_path / "two.png", title="title")
    assert axes is own
    assert figure.number in plt.get_fignums()
    assert [line.get_label() for line in axes.get_lines()] == [
        "small, under attack",
        "small, certified",
        "large, certified",
    ]
    assert axes.get_title() == "title"
    plt.close(figure)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.0, 1.0], [0.5]), r"`certified` to have a share between 0 and 1 for each of 2 radii. Received.*\(1,\)"),
        (([0.0, 1.0], [90, 50]), "`certified` to have a share between 0 and 1"),
        (([0.0, 1.0], [0.9, 0.5], [0.9, np.nan]), "`attacked` to have a share between 0 and 1"),
        (([1.0, 0.0], [0.5, 0.9]), "increasing `radii`"),
        (([0.0], {"a": [0.5]}, {"b": [0.5]}), r"for the models of `certified`, \['a'\]. Received: \['b'\]"),
    ],
)
def test_curves_that_do_not_fit(arguments, words):
    with pytest.raises(ValueError, match=words):
        plot_certified_accuracy(*arguments)


def test_without_matplotlib(monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"needs matplotlib: pip install 'deel-like-lip\[plot\]'"):
        plot_certified_accuracy([0.0], [0.5])
