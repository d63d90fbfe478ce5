# %% [markdown]
# # 7. Fold, certify, export, serve
#
# A trained network is of use where other people run it, on machines that have neither this library nor Keras. You will
#
# - fold a constrained network into a plain Keras model;
# - export it as a TensorFlow SavedModel and as ONNX, with its certificate inside;
# - serve both in processes that could not import this library if they wanted to, radii included;
# - check that a certificate belongs to a model, and see a wrong one refused.
#
# Any Keras backend will do for training. TensorFlow has to be installed to write a SavedModel, and `onnx` for ONNX
# (`pip install "deel-like-lip[export]"`).

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import deel_like_lip as lip

small = os.environ.get("TUTORIAL_SIZE") == "small"  # for a quick run, with results that are not as good
keras.utils.set_random_seed(0)
folder = pathlib.Path(tempfile.mkdtemp())  # where everything below is written

# %% [markdown]
# ## A trained network
#
# As in [tutorial 1](01_first_network.md), with a convolution and a pooling.

# %%
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
x_train, x_test, y_train, y_test = train_test_split(
    images, digits, train_size=1344, test_size=448, random_state=0, stratify=digits
)
epochs = 4 if small else 20

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        lip.layers.LipConv2D(16, 3, padding="same"),
        lip.layers.GroupSort2(),
        lip.layers.ScaledL2NormPooling2D(),
        keras.layers.Flatten(),
        lip.layers.SpectralDense(64, activation=lip.layers.GroupSort2()),
        lip.layers.SpectralDense(10),
    ],
    name="digits",
)
model.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, epochs * len(x_train) // 32)),
    lip.losses.MulticlassHKR(alpha=50.0, min_margin=0.4, true_class_weight=9.0),
)
model.fit(x_train, y_train, batch_size=32, epochs=epochs, callbacks=[lip.callbacks.RenormalizeCallback()], verbose=0)
logits = model.predict(x_test, batch_size=448, verbose=0)
accuracy = float(np.mean(np.argmax(logits, axis=1) == y_test))
print(f"right on {accuracy:.1%} of the test images")

# %% [markdown]
# ## Fold
#
# `vanilla_model` makes a plain Keras model that predicts the same: constrained layers become `Dense` and `Conv2D` with
# the kernels that they have now, sorts of pairs become minima and maxima, and so on. What it returns can be saved and
# loaded with Keras alone.

# %%
plain = lip.vanilla_model(model)
plain.save(folder / "plain.keras")
difference = float(np.max(np.abs(plain.predict(x_test, batch_size=448, verbose=0) - logits)))
print(f"The folded model's outputs differ by at most {difference:.1e}. It consists of")
for layer in plain.layers:
    print(f"  {type(layer).__module__}.{type(layer).__name__} '{layer.name}'")

# %% [markdown]
# ## Certify
#
# Folding is also how certificates stay honest: `certify` folds the model itself and bounds the plain one, so what is
# certified is what is shipped. With two options you can say more about how the model will be used.
#
# - `input_range=(0, 1)`: inputs outside of it get radius 0 instead of a promise about images that do not exist.
# - `rounding="sound"`: radii hold for what float32 arithmetic computes, not only for the exact function that the
#   kernels define. They are a little smaller.

# %%
certificate = lip.certify(model, input_range=(0, 1), rounding="sound")
print(certificate.summary())
radii = certificate.radius(logits, inputs=x_test)
exact_radii = lip.certify(model).radius(logits)
print(f"\nmedian radius {np.median(radii):.5f}, in exact arithmetic {np.median(exact_radii):.5f}")

# %% [markdown]
# ## Export
#
# Each call folds and certifies, unless you pass a certificate that you have already; writes the artefact beside its
# place and then moves it there, so that nobody ever reads half a model; and puts the certificate inside.

# %%
lip.export_saved_model(model, folder / "served", certificate=certificate)
lip.export_onnx(model, folder / "served.onnx", certificate=certificate)
size = (folder / "served.onnx").stat().st_size
print(f"written: {sorted(path.name for path in folder.iterdir())}; the ONNX file has {size / 1024:.0f} KiB")

# %% [markdown]
# ## Serve from TensorFlow
#
# What follows runs in another process, as on another machine. The first lines make sure that neither Keras nor this
# library can be imported there. A SavedModel has two endpoints: `serve` returns the logits, and `certify` the class and
# the radius.

# %%
np.save(folder / "images.npy", x_test)

tensorflow_server = """
import sys
sys.modules["keras"] = sys.modules["deel_like_lip"] = None  # importing them fails

import numpy as np
import tensorflow as tf

served = tf.saved_model.load("served")
images = tf.constant(np.load("images.npy"))
answers = served.certify(images)
np.savez("tensorflow.npz", logits=served.serve(images), answers=answers["class"], radii=answers["radius"])
"""

# %% [markdown]
# ## Serve from onnxruntime
#
# The ONNX file has one input, `inputs`, and three outputs.

# %%
onnx_server = """
import sys
sys.modules["keras"] = sys.modules["deel_like_lip"] = sys.modules["tensorflow"] = None

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("served.onnx", providers=["CPUExecutionProvider"])
names = ["logits", "class", "radius"]
results = session.run(names, {"inputs": np.load("images.npy")})
np.savez("onnxruntime.npz", **dict(zip(["logits", "answers", "radii"], results)))
"""

served = {}
for name, code in {"tensorflow": tensorflow_server, "onnxruntime": onnx_server}.items():
    finished = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    served[name] = dict(np.load(folder / f"{name}.npz"))

# %% [markdown]
# Logits agree up to rounding, answers are the same, and no served radius is above that of the certificate: they are
# computed in float32, rounded down, and reduced by what the logits of two runtimes may differ.

# %%
for name, results in served.items():
    off = np.max(np.abs(results["logits"] - logits))
    same = np.mean(results["answers"] == np.argmax(logits, axis=1))
    above = np.sum(results["radii"] > radii)
    print(f"{name:11}  logits within {off:.1e}, {same:.1%} same answers, {above} radii above the certificate's")

figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
for (name, results), style in zip(served.items(), (("o", 7), ("x", 4)), strict=True):
    positive = radii > 1e-3
    loss = 1 - results["radii"][positive] / radii[positive]
    axis.loglog(radii[positive], loss, style[0], markersize=style[1], fillstyle="none", label=name)
axis.set_xlabel("radius by the certificate (pixels in [0, 1])")
axis.set_ylabel("share of it that serving gives up")
axis.grid(alpha=0.3)
axis.legend()
plt.show()

# %% [markdown]
# ## Check a certificate
#
# Whoever receives a model can read the certificate inside, which is JSON and executes nothing, and check it against the
# model: `verify` compares a hash of the weights, and then bounds the model anew.

# %%
received = lip.load_certificate(folder / "served.onnx")
received.verify(keras.models.load_model(folder / "plain.keras"))
print(f"verified: constant at most {received.lipschitz_constant:.9f}, arithmetic '{received.rounding}'")

# %% [markdown]
# A certificate of other weights, or one that was edited to claim more, is refused.

# %%
retouched = keras.models.load_model(folder / "plain.keras")
retouched.layers[-1].set_weights([2 * weight for weight in retouched.layers[-1].get_weights()])
edited = dataclasses.replace(received, lipschitz_constant=received.lipschitz_constant / 2)
refused = 0
for claim, candidate in ((received, retouched), (edited, plain)):
    try:
        claim.verify(candidate)
    except lip.CertificateError as error:
        refused += 1
        print(f"refused: {error}\n")

# %% [markdown]
# ## What to read next
#
# - [Tutorial 9](09_many_devices.md): training on several devices.
# - [Tutorial 10](10_own_layer.md): a layer of your own that folds and is certified like the built-in ones.
# - `lip.export_litert(model, "served.tflite")` for phones: the same outputs as ONNX.
