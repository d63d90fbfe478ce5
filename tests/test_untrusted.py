"""Model files that were edited, cut or made up: nothing in them is executed or believed."""

import json
import os
import zipfile

import keras
import numpy as np
import pytest

import deel_like_lip as lip

layers = lip.layers


@pytest.fixture
def saved(tmp_path):
    """A model and its file."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.SpectralDense(6, k_coef_lip=2.0, activation=layers.GroupSort2()),
            layers.LipResidual([layers.SpectralDense(6), layers.MaxMin()]),
            layers.SpectralDense(3),
        ]
    )
    model.save(tmp_path / "model.keras")
    return model, tmp_path / "model.keras"


def edited(path, edit):
    """Returns the path of a copy of a `.keras` file whose configuration is edited."""
    target = path.with_name("edited.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                edit([entry["config"] for entry in config["config"]["layers"]][1:])
                content = json.dumps(config)
            copy.writestr(name, content)
    return target


def serialized(layer):
    return keras.saving.serialize_keras_object(layer)


@pytest.mark.parametrize("constant", [0.1, 100.0])
def test_an_edited_constant_is_not_believed(saved, constant):
    model, path = saved
    found = keras.models.load_model(edited(path, lambda configs: configs[0].update(k_coef_lip=constant)))
    assert found.layers[0].k_coef_lip == constant
    certificate = lip.certify(found)
    assert certificate.lipschitz_constant == pytest.approx(lip.certify(model).lipschitz_constant, rel=1e-6)
    lip.certify(model).verify(found)  # it is the same map


def test_an_edited_activation_is_not_believed(saved):
    model, path = saved
    steep = serialized(layers.MaxMin(k_coef_lip=5.0))
    with pytest.raises(
        (ValueError, TypeError), match="'MaxMin' has the Lipschitz constant 5"
    ):  # steeper than a constrained layer allows
        keras.models.load_model(edited(path, lambda configs: configs[0].update(activation=steep)))
    found = keras.models.load_model(edited(path, lambda configs: configs[1].update(k_coef_lip=5.0)))
    assert lip.certify(found).lipschitz_constant == pytest.approx(10, rel=1e-5)
    with pytest.raises(lip.CertificateError, match="from another graph or other arguments of layers"):
        lip.certify(model).verify(found)


BAD = {
    "k_coef_lip": (0, lambda config: config.update(k_coef_lip=-1.0), "`k_coef_lip`"),
    "units": (0, lambda config: config.update(units="many"), "units"),
    "parametrization": (0, lambda config: config.update(parametrization="none"), "`parametrization`"),
    "branch": (1, lambda config: config.update(branch=[]), "`branch`"),
    "initial_alpha": (1, lambda config: config.update(initial_alpha=2.0), "`initial_alpha`"),
}


@pytest.mark.parametrize(("layer", "edit", "words"), BAD.values(), ids=BAD.keys())
def test_bad_configurations_are_refused(layer, edit, words, saved):
    with pytest.raises((ValueError, TypeError), match=words):
        keras.models.load_model(edited(saved[1], lambda configs: edit(configs[layer])))


@pytest.mark.parametrize("place", ["activation", "branch"])
def test_code_in_a_file_is_not_executed(place, saved, tmp_path):
    """Where this library reads layers inside of layers, Keras's safe mode holds."""
    trace = str(tmp_path / "trace")
    code = serialized(keras.layers.Lambda(lambda x: os.mkdir(trace) or x))

    def edit(configs):
        if place == "activation":
            configs[0]["activation"] = code
        else:
            configs[1]["branch"] = [code]

    with pytest.raises(Exception, match="(?s)[Ll]ambda.*(unsafe|safe_mode)"):
        keras.models.load_model(edited(saved[1], edit))
    assert not os.path.exists(trace)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_cut_files_are_refused(share, saved):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
        keras.models.load_model(path)


def test_weights_that_are_not_constrained_are_seen(saved):
    """A file with other weights than the layers would allow loads, and is certified for what it is."""
    model, path = saved
    model.layers[-1].kernel.assign(3 * np.asarray(keras.ops.convert_to_numpy(model.layers[-1].kernel)))
    model.save(path)
    assert lip.certify(keras.models.load_model(path)).lipschitz_constant == pytest.approx(6, rel=1e-5)
