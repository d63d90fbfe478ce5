"""Certificates: radii by hand, soundness against a search, and bad input."""

import json
import re

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from benchmarks.fuzz import signed
from deel_like_lip.bounds import Affine, LayerBound
from deel_like_lip.certificates import CertificateError, Head
from tests.helpers import fewer_where_compiled, to_numpy, vector_jacobian_product

layers = lip.layers


def certificate_of(*heads, constant=1.0, **options):
    table = (LayerBound("last", "Dense", 1.0, constant),)
    options.setdefault("input_shapes", ((2,),))
    return lip.Certificate(tuple(heads), constant, table, "model", "0" * 64, **options)


def multiclass(pairs, constant=1.0, error=None, **options):
    pairs = np.asarray(pairs, float)
    count = len(pairs)
    head = Head("logits", "multiclass", (count,), constant, pairs, np.full(count, constant), error)
    return certificate_of(head, constant=constant, **options)


def binary(constant, error=None, **options):
    head = Head("logit", "binary", (1,), constant, None, np.full(1, constant), error)
    return certificate_of(head, constant=constant, **options)


def multilabel(constants, **options):
    head = Head("labels", "multilabel", (len(constants),), 1.0, None, np.asarray(constants, float))
    return certificate_of(head, **options)


def test_binary_radius():
    certificate = binary(2.0)
    np.testing.assert_allclose(certificate.radius([[3.0], [-1.0], [0.0]]), [1.5, 0.5, 0.0], rtol=1e-12)
    np.testing.assert_allclose(certificate.radius(np.array([3.0, -1.0], "float32")), [1.5, 0.5], rtol=1e-12)
    assert np.all(certificate.radius([[3.0]]) <= 1.5)


def test_multiclass_radius_is_the_smallest_over_pairs():
    certificate = multiclass([[0, 1, 4], [1, 0, 2], [4, 2, 0]])
    # Class 0 leads class 1 by 3 at constant 1, and class 2 by 4 at constant 4.
    np.testing.assert_allclose(certificate.radius([[3.0, 0.0, -1.0]]), [1.0], rtol=1e-12)
    np.testing.assert_allclose(certificate.radius([[0.0, 1.0, 0.5]]), [0.25], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_radius_zero(bad):
    assert np.all(binary(1.0).radius([[bad]]) == 0)
    logits = np.array([[3.0, 1.0, 0.0]] * 3)
    np.fill_diagonal(logits, bad)
    assert np.all(multiclass(np.ones((3, 3))).radius(logits) == 0)


def test_ties_and_empty_batches():
    certificate = multiclass(np.ones((3, 3)) - np.eye(3))
    assert np.all(certificate.radius([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) == 0)
    assert certificate.radius(np.zeros((0, 3))).shape == (0,)
    # Outputs that differ by a constant only: a tie stays a tie, and a lead stays a lead.
    same = multiclass(np.zeros((2, 2)))
    np.testing.assert_array_equal(same.radius([[1.0, 1.0], [2.0, 1.0]]), [0, np.inf])


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 4), (2, 3, 3), ()])
def test_logits_of_the_wrong_shape(shape):
    words = r"logits of the output 'logits', of shape \(samples, 3\)\. Received: logits\.shape="
    with pytest.raises(ValueError, match=words):
        multiclass(np.ones((3, 3))).radius(np.zeros(shape))


def test_certified_accuracy():
    certificate = multiclass(np.ones((2, 2)) - np.eye(2))
    logits, labels = [[1.0, 0.0], [0.0, 0.4], [1.0, 0.0]], [0, 1, 1]
    expected = [2 / 3, 1 / 3, 1 / 3, 0]
    np.testing.assert_allclose(certificate.certified_accuracy(logits, labels, [0.0, 0.4, 0.5, 1.0]), expected)
    np.testing.assert_allclose(certificate.certified_accuracy(logits, np.eye(2)[labels], [0.0]), [2 / 3])
    for truth in ([1, 0, 0], [1, -1, -1], [[1], [0], [0]]):
        shares = binary(1.0).certified_accuracy([[1.0], [-0.5], [2.0]], truth, [0.0, 0.6])
        np.testing.assert_allclose(shares, [2 / 3, 1 / 3])
    with pytest.raises(ValueError, match="one label a sample"):
        certificate.certified_accuracy(logits, [0, 1], [0.0])
    for bad in ([-1.0], [np.nan], [], 0.5):
        with pytest.raises(ValueError, match="Expected `radii` to be a list of finite l2 distances"):
            certificate.certified_accuracy(logits, labels, bad)


def test_class_pairs_of_the_last_layer(rng):
    model = keras.Sequential([keras.Input((6,)), layers.SpectralDense(5, k_coef_lip=2.0), keras.layers.Dense(3)])
    model.layers[1].kernel.assign(rng.normal(size=(5, 3)))
    kernel = to_numpy(model.layers[1].kernel).astype("float64")
    certificate = lip.certify(model)
    for i in range(3):
        for j in range(3):
            expected = 2.0 * np.linalg.norm(kernel[:, i] - kernel[:, j])
            assert certificate.pair_constants[i, j] == pytest.approx(expected, rel=1e-5)
    worst = np.sqrt(2) * certificate.lipschitz_constant
    assert np.all(certificate.pair_constants <= worst * (1 + 1e-12))


def test_without_a_linear_head_pairs_have_root_two():
    model = keras.Sequential([keras.Input((6,)), layers.SpectralDense(4), layers.MaxMin()])
    certificate = lip.certify(model)
    off_diagonal = certificate.pair_constants[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, np.sqrt(2), rtol=1e-6)
    assert np.all(off_diagonal >= np.sqrt(2) * certificate.lipschitz_constant)


def trained(head, rng):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.LipConv2D(4, 3, padding="same", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(8, activation=layers.MaxMin()),
            head,
        ]
    )
    outputs = model.output_shape[1]
    loss = lip.losses.HingeKR() if outputs == 1 else lip.losses.MulticlassHKR()
    model.compile(keras.optimizers.Adam(1e-2), loss)
    images = rng.normal(size=(256, 6, 6, 1)).astype("float32")
    labels = (images[:, :3].sum((1, 2, 3)) > 0).astype(int)
    model.fit(images, labels, epochs=3, verbose=0)
    return model, images


HEADS = {
    "binary": lambda: layers.FrobeniusDense(1),
    "orthogonal": lambda: layers.SpectralDense(3),
    "plain": lambda: keras.layers.Dense(3),
}


@pytest.mark.parametrize("name", fewer_where_compiled(HEADS, "orthogonal"))
def test_no_attack_beats_a_radius(name, rng):
    """Gradient steps on the smallest margin, projected on the sphere of the certified radius, flip no answer."""
    model, images = trained(HEADS[name](), rng)
    images = images[:64]
    logits = model.predict(images, verbose=0)
    radii = lip.certify(model).radius(logits)
    assert np.median(radii) > 1e-3
    answers = logits > 0 if logits.shape[1] == 1 else np.argmax(logits, axis=1)[:, None]

    attacked = images.astype("float64")
    for _ in range(20):
        now = to_numpy(model(attacked.astype("float32")))
        cotangent = np.zeros_like(now)
        if now.shape[1] == 1:
            cotangent[:, 0] = np.where(answers[:, 0], -1, 1)
        else:
            rivals = now.copy()
            np.put_along_axis(rivals, answers, -np.inf, axis=1)
            np.put_along_axis(cotangent, np.argmax(rivals, axis=1)[:, None], 1, axis=1)
            np.put_along_axis(cotangent, answers, -1, axis=1)
        gradient = vector_jacobian_product(model, attacked, cotangent)
        norm = np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True)) + 1e-12
        moved = attacked + gradient / norm * radii.reshape(-1, 1, 1, 1) / 4 - images
        length = np.sqrt((moved**2).sum((1, 2, 3), keepdims=True)) + 1e-300
        # A hair inside the sphere: radii do not count the rounding of the float32 forward pass.
        attacked = images + moved / length * np.maximum(radii.reshape(-1, 1, 1, 1) - 1e-5, 0)
        final = to_numpy(model(attacked.astype("float32")))
        same = final > 0 if final.shape[1] == 1 else np.argmax(final, axis=1)[:, None]
        assert np.array_equal(same, answers)


def test_the_attack_is_a_real_one(rng):
    """Well beyond the radii the same direction does flip answers, so the test above can fail."""
    model, images = trained(layers.FrobeniusDense(1), rng)
    logits = model.predict(images, verbose=0)
    radii = lip.certify(model).radius(logits)
    gradient = vector_jacobian_product(model, images, np.where(logits > 0, -1.0, 1.0))
    norm = np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True)) + 1e-12
    beyond = images + 4 * radii.reshape(-1, 1, 1, 1) * gradient / norm
    flipped = (model.predict(beyond.astype("float32"), verbose=0) > 0) != (logits > 0)
    assert np.mean(flipped) > 0.5


def test_progress_bar(capsys):
    model = keras.Sequential(
        [keras.Input((4,)), layers.SpectralDense(4, activation=layers.MaxMin()), layers.SpectralDense(2)]
    )
    lip.certify(model)
    assert "layer" not in capsys.readouterr().out
    lip.certify(model, verbose=1)
    assert "layer" in capsys.readouterr().out


def test_edited_weights_are_seen():
    model = keras.Sequential([keras.Input((4,)), layers.SpectralDense(2)])
    model.layers[0].kernel.assign(10 * to_numpy(model.layers[0].kernel))
    assert lip.certify(model).lipschitz_constant == pytest.approx(10, rel=1e-5)


def test_summary_and_json():
    head = layers.SpectralDense(2, name="last")
    model = keras.Sequential([keras.Input((4,)), layers.SpectralDense(3, name="first"), head], name="net")
    certificate = lip.certify(model)
    summary = certificate.summary()
    assert "Certificate of the model 'net' for the l2 norm" in summary
    assert "first" in summary
    (written,) = re.findall(r"Lipschitz constant: L <= (\S+)", summary)
    assert certificate.lipschitz_constant <= float(written) <= certificate.lipschitz_constant * (1 + 1e-8)
    assert "with L_i,j from 1.41421 to 1.41421" in summary
    assert [line.name for line in certificate.layers] == ["first", "last"]
    fields = json.loads(certificate.to_json())
    assert fields["lipschitz_constant"] == certificate.lipschitz_constant
    assert fields["heads"][0]["pair_constants"] == certificate.pair_constants.tolist()
    assert fields["norm"] == "l2"
    assert fields["versions"]["keras"] == keras.__version__
    assert "Radius (binary): |f| / L" in binary(1.0).summary()


def test_several_heads(rng):
    inputs = keras.Input((4,))
    body = layers.SpectralDense(4)(inputs)
    outputs = {"kind": layers.SpectralDense(3)(body), "alarm": layers.SpectralDense(1)(body)}
    model = keras.Model(inputs, outputs, name="two")
    certificate = lip.certify(model)
    assert [(head.name, head.task) for head in certificate.heads] == [("alarm", "binary"), ("kind", "multiclass")]
    logits = model.predict(rng.normal(size=(20, 4)), verbose=0)
    radii = certificate.radius(logits)
    each = [certificate[name].radius(logits[name], None, None) for name in ("kind", "alarm")]
    np.testing.assert_allclose(radii, np.minimum(*each), rtol=1e-12)
    np.testing.assert_array_equal(radii, certificate.radius([logits["alarm"], logits["kind"]]))
    labels = {"kind": np.argmax(logits["kind"], 1), "alarm": logits["alarm"] > 0}
    np.testing.assert_array_equal(certificate.radius(logits, targets=labels), radii)
    labels["alarm"] = ~labels["alarm"]
    assert np.all(certificate.radius(logits, targets=labels) == 0)
    with pytest.raises(
        ValueError, match="list or dict of `logits` for the outputs \\['alarm', 'kind'\\]. Received: ndarray"
    ):
        certificate.radius(logits["kind"])
    with pytest.raises(AttributeError, match=r"several outputs.*use `certificate\[name\]\.pair_constants`"):
        _ = certificate.pair_constants
    with pytest.raises(KeyError, match="There is no output 'other'"):
        certificate["other"]
    again = lip.certify(model, task={"kind": "multilabel"})
    assert again["kind"].task == "multilabel"
    with pytest.raises(ValueError, match="Expected `task` to be one of binary, .* Received: task={'colour': 'binary'}"):
        lip.certify(model, task={"colour": "binary"})
    with pytest.raises(ValueError, match=r"shape \(batch, 1\) for task=\"binary\""):
        lip.certify(model, task={"kind": "binary"})


def test_several_labels():
    certificate = multilabel([1.0, 2.0])
    logits = [[3.0, -1.0], [0.5, 2.0], [0.0, 1.0]]
    np.testing.assert_allclose(certificate.radius(logits), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(certificate.radius(logits, targets=[[1, 0], [1, 0], [1, 1]]), [0.5, 0.0, 0.0])
    with pytest.raises(ValueError, match="one label a sample and output"):
        certificate.radius(logits, targets=[1, 0, 1])


def test_targets():
    certificate = multiclass(np.ones((3, 3)) - np.eye(3))
    logits = [[3.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    np.testing.assert_allclose(certificate.radius(logits, targets=[0, 2]), [2.0, 0.0])
    np.testing.assert_allclose(certificate.radius(logits, targets=np.eye(3)[[0, 1]]), [2.0, 1.0])
    np.testing.assert_allclose(binary(1.0).radius([[2.0], [2.0]], targets=[1, -1]), [2.0, 0.0])


def test_regression():
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.LipConv2D(2, 3), layers.GroupSort2()], name="images")
    certificate = lip.certify(model)
    assert certificate.heads[0].task == "regression"
    change = certificate.output_change([0.0, 2.0])
    np.testing.assert_allclose(change, [0.0, 2 * certificate.lipschitz_constant])
    assert change[1] >= 2 * certificate.lipschitz_constant
    with pytest.raises(ValueError, match="certified for regression"):
        certificate.radius(np.zeros((1, 2, 2, 2)))
    with pytest.raises(
        ValueError, match=r"\(batch, outputs\) for task=\"multiclass\". Received: .* of 'images', of shape"
    ):
        lip.certify(model, task="multiclass")
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match="Expected distances of at least 0"):
            certificate.output_change(bad)


def test_input_scale():
    model = keras.Sequential([keras.Input((4,)), layers.SpectralDense(2)])
    logits = model.predict(np.eye(4), verbose=0)
    plain, scaled = lip.certify(model), lip.certify(model, input_scale=1 / 255)
    np.testing.assert_allclose(scaled.radius(logits), 255 * plain.radius(logits), rtol=1e-12)
    np.testing.assert_allclose(scaled.output_change(255.0), plain.output_change(1.0), rtol=1e-12)
    assert "before it is scaled by 0.00392157" in scaled.summary()
    inside = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(1 / 255), *model.layers])
    assert lip.certify(inside).lipschitz_constant == pytest.approx(plain.lipschitz_constant / 255, rel=1e-6)
    for bad in (0, -1.0, np.inf, "one", True):
        with pytest.raises(ValueError, match="Expected `input_scale` to be a positive number. Received: input_scale="):
            lip.certify(model, input_scale=bad)


def test_inputs_that_break_the_promise_have_radius_zero():
    certificate = binary(1.0, input_range=(0.0, 1.0))
    inputs = np.array([[0.0, 1.0], [0.5, 1.5], [-0.1, 0.0], [np.nan, 0.0], [np.inf, 0.0]])
    np.testing.assert_allclose(certificate.radius(np.ones((5, 1)), inputs=inputs), [1, 0, 0, 0, 0])
    assert binary(1.0).radius([[1.0]], inputs=[[np.nan, 0.0]]) == [0.0]
    with pytest.raises(ValueError, match=r"`inputs` of shape \(samples, 2\). Received: \(1, 3\)"):
        certificate.radius([[1.0]], inputs=[[0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="as many samples in each of `logits` and `inputs`. Received: "):
        certificate.radius([[1.0], [1.0]], inputs=[[0.0, 0.0]])
    for bad in ((1.0, 0.0), (0.0,), (0.0, np.inf), "01"):
        with pytest.raises(ValueError, match="Expected `input_range` to be \\(low, high\\), both finite. Received: "):
            lip.certify(keras.Sequential([keras.Input((2,)), layers.SpectralDense(1)]), input_range=bad)


def test_sound_radii_by_hand():
    error = Affine(0.01, 0.002)
    certificate = binary(1.0, error, rounding="sound")
    # |x| = 5 there: margin 1 - 2 (0.01 + 0.002 * 5), constant 1 + 0.002.
    np.testing.assert_allclose(certificate.radius([[1.0]], inputs=[[3.0, 4.0]]), [0.96 / 1.002], rtol=1e-9)
    pairs = multiclass(2 * (np.ones((2, 2)) - np.eye(2)), 1.0, error, rounding="sound", input_range=(-3.0, 1.0))
    root = np.sqrt(2)
    expected = (1 - 2 * root * 0.02) / (2 + root * 0.002)
    np.testing.assert_allclose(
        pairs.radius([[1.0, 0.0]], inputs=[[-3.0, 0.0]]), (1 - 2 * root * 0.016) / (2 + root * 0.002)
    )
    # Without the inputs, the largest that the range allows: |x| = 3 root 2.
    largest = 0.01 + 0.002 * 3 * root
    np.testing.assert_allclose(pairs.radius([[1.0, 0.0]]), (1 - 2 * root * largest) / (2 + root * 0.002))
    assert expected < 0.5
    with pytest.raises(ValueError, match="give the `inputs`, or certify with an `input_range`"):
        certificate.radius([[1.0]])
    assert np.all(certificate.radius([[0.03], [0.0]], inputs=[[3.0, 4.0], [0.0, 0.0]]) == 0)


def test_verify(rng):
    model = keras.Sequential([keras.Input((4,)), layers.SpectralDense(3), layers.FullSort(), layers.SpectralDense(2)])
    certificate = lip.Certificate.from_json(lip.certify(model, rounding="sound").to_json())
    certificate.verify(model)
    certificate.verify(lip.vanilla_model(model))
    fields = json.loads(certificate.to_json())
    for edit in (
        lambda fields: fields["heads"][0].update(pair_constants=[[0.0, 0.1], [0.1, 0.0]]),
        lambda fields: fields["layers"][0].update(constant=0.1),
    ):
        fields = json.loads(certificate.to_json())
        edit(fields)
        with pytest.raises(CertificateError, match="its checksum is that of another one"):
            lip.Certificate.from_json(json.dumps(fields))
        with pytest.raises(CertificateError, match="claims smaller constants"):
            lip.Certificate.from_json(signed(fields)).verify(model)
    fields = json.loads(certificate.to_json())
    fields["input_shapes"] = [[2]]
    with pytest.raises(CertificateError, match="inputs or outputs of other names or shapes"):
        lip.Certificate.from_json(signed(fields)).verify(model)
    model.layers[0].kernel.assign(to_numpy(model.layers[0].kernel) * 0.9999)
    with pytest.raises(CertificateError, match="was computed from other weights"):
        certificate.verify(model)


def test_verify_knows_outputs_by_their_names():
    inputs = keras.Input((4,))
    outputs = [layers.SpectralDense(2, name="kind")(inputs), layers.SpectralDense(2, "relu", name="tags")(inputs)]
    for model in (keras.Model(inputs, outputs), keras.Model(inputs, dict(zip("ab", outputs, strict=True)))):
        certificate = lip.certify(model)
        certificate.verify(model)
        certificate.verify(lip.vanilla_model(model))
        fields = json.loads(certificate.to_json())
        names = [head["name"] for head in fields["heads"]]
        for head, name in zip(fields["heads"], reversed(names), strict=True):
            head["name"] = name
        swapped = lip.Certificate.from_json(signed(fields))
        for other in (model, lip.vanilla_model(model)):
            with pytest.raises(CertificateError, match="other names"):
                swapped.verify(other)


def test_verify_what_no_model_can_tell():
    model = keras.Sequential([keras.Input((4,)), layers.SpectralDense(2)])
    options = {"task": "multilabel", "rounding": "sound", "input_scale": 0.5, "input_range": (0.0, 1.0)}
    certificate = lip.certify(model, **options)
    certificate.verify(model, **options)
    others = {"task": "multiclass", "rounding": "exact", "input_scale": 1.0, "input_range": (0.0, 2.0)}
    for option, value in others.items():
        with pytest.raises(CertificateError, match=rf"was made with {option}=.*, where .* is expected"):
            certificate.verify(model, **{option: value})


def test_save(tmp_path):
    certificate = binary(1.0)
    for _ in range(2):
        certificate.save(tmp_path / "certificate.json")
        assert lip.load_certificate(tmp_path / "certificate.json").to_json() == certificate.to_json()
        assert [path.name for path in tmp_path.iterdir()] == ["certificate.json"]


def test_json_both_ways(rng):
    inputs = keras.Input((4,))
    outputs = {"a": layers.SpectralDense(3)(inputs), "b": keras.layers.Reshape((2, 1))(layers.SpectralDense(2)(inputs))}
    model = keras.Model(inputs, outputs)
    for rounding in ("exact", "sound"):
        certificate = lip.certify(model, rounding=rounding, input_range=(0, 1), input_scale=0.5)
        again = lip.Certificate.from_json(certificate.to_json())
        assert again.to_json() == certificate.to_json()
        assert again.summary() == certificate.summary()
        assert again.heads[1].pair_constants is None


def edited(**changes):
    fields = json.loads(multiclass(np.ones((2, 2)) - np.eye(2)).to_json())
    for path, value in changes.items():
        target, *rest = path.split("__")
        place = fields
        while rest:
            place = place[int(target) if isinstance(place, list) else target]
            target, *rest = rest
        if value is KeyError:
            del place[target]
        else:
            place[target] = value
    return signed(fields)


DAMAGED = {
    "": "Expecting value",
    "[]": "not a JSON object",
    "{}": "its format is None",
    edited(format=3): "its format is 3",
    edited(norm="linf"): "its norm is 'linf'",
    edited(heads=[]): "no outputs",
    edited(fingerprint=KeyError): "the field 'fingerprint' is missing",
    edited(lipschitz_constant=-1.0): "a constant is -1.0",
    edited(lipschitz_constant="1"): "a constant is '1'",
    edited(lipschitz_constant=float("nan")): "a constant is nan",
    edited(rounding="fast"): "it says 'fast'",
    edited(rounding="sound"): "rounding error None",
    edited(heads__0__task="oracle"): "it says 'oracle'",
    edited(heads__0__task="binary"): "a binary output has the shape",
    edited(heads__0__pair_constants=[[0, 1]]): "cannot reshape",
    edited(heads__0__pair_constants=[[0, 1], [2, 0]]): "not symmetric",
    edited(heads__0__pair_constants=None): "not lists",
    edited(heads__0__shape=[-2]): "a shape is",
    edited(input_scale=0): "Expected `input_scale`",
    edited(input_range=[1, 0]): "Expected `input_range`",
    edited(versions=[]): "has no attribute",
    edited(lipschitz_constant=10**400): "int too large",
    edited(input_shapes=[[2**63]]): "a shape is",
    edited(input_shapes=[{}]): "a shape is",
    edited().replace('"norm"', '"norm": "l2", "norm"'): "a field is there twice",
    edited().replace('"model"', '"other"'): "its checksum is that of another one",
    edited()[:-1]: "Expecting",
    "[" * 100_000: "recursion",
}


@pytest.mark.parametrize(("text", "words"), DAMAGED.items(), ids=DAMAGED.values())
def test_damaged_certificates_are_refused(text, words):
    with pytest.raises(CertificateError, match=f"not a certificate that can be used: .*{words}"):
        lip.Certificate.from_json(text)


@pytest.mark.parametrize(
    ("units", "last", "task"),
    [
        (1, lambda: keras.layers.Dense(1, "sigmoid"), None),
        (1, lambda: keras.layers.Dense(1, "relu"), "binary"),
        (3, lambda: keras.layers.Activation("hard_sigmoid"), "multilabel"),
        (3, lambda: keras.layers.ReLU(), "multilabel"),
    ],
)
def test_outputs_of_one_sign_have_no_radius(units, last, task):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), last()])
    with pytest.raises(ValueError, match="never negative"):
        lip.certify(model, task=task)
    regression = lip.certify(model, task="regression")
    assert regression.lipschitz_constant < np.inf
    if units > 1:
        lip.certify(model, task="multiclass")
