"""Pictures of the comparison."""

import io
import pathlib
from typing import Any

import keras
import matplotlib as mpl
import numpy as np
from PIL import Image

import deel_like_lip as lip
from examples.paper.arms import Setting
from examples.paper.attacks import ATTACKS, Victim
from examples.paper.data import Data, Images, Labels
from examples.paper.report import Results, certified_distances, wrong_distances

mpl.use("Agg")
import matplotlib.pyplot as plt

EXAMPLES = 5


def draw(folder: pathlib.Path, name: str, setting: Setting, results: Results, data: Data) -> None:
    """Draws curves.png, noise.png and transport.png."""
    curves(folder / "curves.png", name, setting, results, data.test[1])
    # Adv, and of hKR the arm of the largest margin.
    if arms := [arm for arm in results if arm == "Adv"] + [arm for arm in results if arm.startswith("hKR")][-1:]:
        noise(folder / "noise.png", name, arms, results, data.test)
        transport(folder / "transport.png", name, arms, folder, data.test)


def save(figure: Any, path: pathlib.Path, dpi: int = 110) -> None:
    """Writes a figure with 128 colours, which is a third of the file, and closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    plt.close(figure)
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(128).save(path, optimize=True)


def curves(path: pathlib.Path, name: str, setting: Setting, results: Results, labels: Labels) -> None:
    """Draws accuracy against eps, a panel for each attack, one for the worst of them and one for certificates."""
    panels = [*ATTACKS, "worst", "certified"]
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
    limits = np.linspace(0, setting.eps[-1], 200).tolist()
    for panel, axis in zip(panels, axes.flat, strict=True):
        for index, (arm, found) in enumerate(results.items()):
            if panel == "certified":
                distances = certified_distances(found, labels)
            else:
                distances = wrong_distances(found, labels, panel)
                distances = distances[: len(wrong_distances(found, labels, "worst"))]
            shares = 100 * lip.accuracy_under_attack(distances, limits)
            style = "-" if arm.startswith("hKR") else "--"
            axis.plot(limits, shares, style, color=f"C{index}", label=arm, linewidth=1.5)
        titles = {"worst": "the worst of the four", "certified": "certified", "CW": "Carlini and Wagner"}
        axis.set_title(titles.get(panel, panel), fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].set(xlim=(0, limits[-1]), ylim=(0, 100))
    axes[1, 1].set_xlabel("eps, l2, pixels in [0, 1]", fontsize=10)
    figure.supylabel("accuracy (% of images)", fontsize=10)
    figure.suptitle(f"{name}: accuracy under attack", fontsize=11)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    save(figure, path)


def noise(path: pathlib.Path, name: str, arms: list[str], results: Results, test: tuple[Images, Labels]) -> None:
    """Draws images, and for each of some arms what DeepFool made of them and the noise that it added."""
    images, labels = test
    kept = min(len(results[arm]["DeepFool"]["moved"]) for arm in arms)
    distances = np.stack([wrong_distances(results[arm], labels, "DeepFool")[:kept] for arm in arms])
    shown = _one_of_each(labels[:kept], np.all((distances > 0) & np.isfinite(distances), axis=0))
    columns: list[tuple[str, Images, Any]] = [("image", images[shown], None)]
    for arm, found in zip(arms, distances, strict=True):
        moved = results[arm]["DeepFool"]["moved"][shown]
        columns += [(f"{arm}, attacked", moved, None), ("noise", moved - images[shown], found[shown])]
    _grid(path, f"{name}: the nearest other answer by DeepFool", columns)


def transport(
    path: pathlib.Path, name: str, arms: list[str], folder: pathlib.Path, test: tuple[Images, Labels]
) -> None:
    """Draws images x, and for each of some arms the gradient of f and x - 2 f(x) grad f(x) / |grad f(x)|^2.

    f is the output of a binary net, or the answer's margin over the class that is nearest to a linear model. If the
    gradient has norm 1, as it has almost everywhere for the net that attains the KR distance, this is the paper's x - c
    f(x) grad f(x), and the other class is where it points.
    """
    images, labels = test
    kept = 60
    columns: list[tuple[str, Images, Any]] = []
    shown = _one_of_each(labels[:kept], np.ones(len(labels[:kept]), dtype=bool))
    columns.append(("image x", images[shown], None))
    for arm in arms:
        margins, gradients = margin_gradients(
            Victim(keras.saving.load_model(folder / arm / "model.keras")), images[shown]
        )
        norms = np.sqrt(np.sum(gradients**2, axis=(1, 2, 3)))
        factor = (2 * margins / np.maximum(norms, 1e-12) ** 2)[:, None, None, None]
        columns += [(f"{arm}, gradient", gradients, norms), ("moved along", images[shown] - factor * gradients, None)]
    _grid(path, f"{name}: gradients as directions of transport", columns)


def margin_gradients(victim: Victim, images: Images) -> tuple[Any, Any]:
    """Returns by how much the answer is ahead of the class that is nearest to a linear model, and its gradient."""
    logits = victim.free.predict(images).astype(np.float64)
    gradients = victim.free.class_gradient(images).astype(np.float64)
    rows, top = np.arange(len(images)), np.argmax(logits, axis=1)
    margins = logits[rows, top][:, None] - logits
    gradients = gradients[rows, top][:, None] - gradients
    norms = np.sqrt(np.sum(gradients**2, axis=(2, 3, 4)))
    norms[rows, top] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        rival = np.argmin(np.where(norms > 0, margins / norms, np.inf), axis=1)
    return margins[rows, rival], gradients[rows, rival]


def _one_of_each(labels: Labels, allowed: Any) -> Labels:
    """Returns the indices of allowed images, of as many classes as there are before any comes twice."""
    seen: dict[int, int] = {}
    turns = []
    for label in labels:
        seen[int(label)] = seen.get(int(label), -1) + 1
        turns.append(seen[int(label)])
    order = np.argsort(turns, kind="stable")
    return order[allowed[order]][:EXAMPLES].astype(np.int64)


def _grid(path: pathlib.Path, title: str, columns: list[tuple[str, Images, Any]]) -> None:
    """Draws columns of images; those with a norm for each are differences, drawn in two colours on a scale each."""
    rows = len(columns[0][1])
    if not rows:  # No image was answered right and then changed, as in a net that has learned nothing.
        return
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(1.35 * len(columns), 1.35 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for column, (heading, images, norms) in zip(axes.T, columns, strict=True):
        column[0].set_title(heading, fontsize=8)
        for row, axis in enumerate(column):
            axis.set(xticks=[], yticks=[])
            image = np.asarray(images[row], dtype=np.float64)
            if norms is None:
                axis.imshow(np.clip(image.squeeze(), 0, 1), cmap="gray", vmin=0, vmax=1)
            else:
                flat = image.mean(axis=2)
                largest = max(float(np.max(np.abs(flat))), 1e-12)
                axis.imshow(flat, cmap="RdBu_r", vmin=-largest, vmax=largest)
                axis.set_xlabel(f"norm {norms[row]:.3g}", fontsize=7, labelpad=1)
    figure.suptitle(title, fontsize=9)
    save(figure, path)
