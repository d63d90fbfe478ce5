"""What the comparison found: accuracy under attack, certificates that were tested, and whether hKR is ahead."""

import csv
import io
import json
import pathlib
from typing import Any

import numpy as np

import deel_like_lip as lip
from examples.paper.arms import Setting
from examples.paper.attacks import ATTACKS, Distances, answers
from examples.paper.data import Labels
from examples.paper.store import Arrays, write_text

Findings = dict[str, Any]
Results = dict[str, dict[str, Arrays]]

# Arms are compared if their clean accuracies differ by no more.
COMPARABLE = 0.02


def findings(name: str, setting: Setting, results: Results, labels: Labels) -> Findings:
    """Returns all figures of a dataset, as they go to results.json.

    Args:
        name: The dataset.
        setting: Its setting.
        results: For each arm the arrays that it kept, by the names of files.
        labels: Labels of the test images.
    """
    of_arms = {arm: _of_arm(setting, found, labels) for arm, found in results.items()}
    return {
        "data": name,
        "eps": list(setting.eps),
        "arms": of_arms,
        "verdict": _verdict(setting, of_arms),
        "broken": {arm: one["broken"] for arm, one in of_arms.items() if one["broken"]},
        "seconds": sum(one["seconds"] for one in of_arms.values()),
        "cpu_seconds": sum(one["cpu_seconds"] for one in of_arms.values()),
    }


def wrong_distances(found: dict[str, Arrays], labels: Labels, attack: str) -> Distances:
    """Returns how far each image must be moved to be answered wrongly, as an attack found it; 0 if it is already.

    Args:
        found: What an arm kept.
        labels: Labels of the test images.
        attack: Name of an attack, or "worst" for the nearest that any found, for the images that all were tried on.
    """
    if attack == "worst":
        each = [wrong_distances(found, labels, one) for one in ATTACKS]
        count = min(map(len, each))
        nearest: Distances = np.min([distances[:count] for distances in each], axis=0)
        return nearest
    distances = found[attack]["distances"]
    count = len(distances)
    return np.where(answers(found["certificate"]["logits"][:count]) == labels[:count], distances, 0.0)


def certified_distances(found: dict[str, Arrays], labels: Labels) -> Distances:
    """Returns the certified radius of each image, 0 if it is answered wrongly."""
    certificate = found["certificate"]
    return np.where(answers(certificate["logits"]) == labels, certificate["radii"], 0.0)


def _of_arm(setting: Setting, found: dict[str, Arrays], labels: Labels) -> Findings:
    eps, worst = setting.eps, wrong_distances(found, labels, "worst")
    count = len(worst)  # attacks are compared on the same images
    accuracy = {
        attack: lip.accuracy_under_attack(wrong_distances(found, labels, attack)[:count], eps).tolist()
        for attack in (*ATTACKS, "worst")
    }
    certified = certified_distances(found, labels)
    radii = found["certificate"]["radii"]
    tested, broken, ratios = {}, {}, [np.inf]
    for attack in (*ATTACKS, "within"):
        distances = found[attack]["distances"]
        own = radii[: len(distances)]
        tested[attack] = len(distances)
        beaten = int(np.sum((distances <= own) & (own > 0)))
        if beaten:
            broken[attack] = beaten
        ratios.append(np.min(distances[own > 0] / own[own > 0], initial=np.inf))
    kept = [found[name] for name in ("training", "certificate", *ATTACKS, "within")]
    return {
        "clean": float(np.mean(answers(found["certificate"]["logits"]) == labels)),
        "constant": float(found["certificate"]["constant"]),
        "certified": lip.accuracy_under_attack(certified, eps).tolist(),
        "attacked": accuracy,
        "attacked_images": count,
        "tested": tested,
        "broken": broken,
        "smallest_ratio": float(min(ratios)),
        "training_seconds": float(found["training"]["seconds"]),
        "seconds": sum(float(arrays["seconds"]) for arrays in kept),
        "cpu_seconds": sum(float(arrays["cpu_seconds"]) for arrays in kept),
    }


def _verdict(setting: Setting, of_arms: Findings) -> list[Findings]:
    """Returns for each hKR arm and large eps the best of the other arms that are as accurate, and who is ahead."""
    verdict = []
    for name, own in of_arms.items():
        if not name.startswith("hKR"):
            continue
        others = [
            other
            for other, one in of_arms.items()
            if not other.startswith("hKR") and abs(one["clean"] - own["clean"]) <= COMPARABLE
        ]
        for eps in setting.large_eps:
            index = setting.eps.index(eps)
            accuracies = {other: of_arms[other]["attacked"]["worst"][index] for other in others}
            best = max(accuracies, key=lambda other: accuracies[other], default=None)
            verdict.append(
                {
                    "arm": name,
                    "eps": eps,
                    "accuracy": own["attacked"]["worst"][index],
                    "compared_with": others,
                    "best_other": best,
                    "best_other_accuracy": None if best is None else accuracies[best],
                    "ahead": None if best is None else own["attacked"]["worst"][index] > accuracies[best],
                }
            )
    return verdict


def write(folder: pathlib.Path, found: Findings) -> None:
    """Writes results.json, table.csv with all accuracies, and table.md with those that count in the end."""
    write_text(folder / "results.json", json.dumps(found, indent=2))
    eps = [f"{radius:.3g}" for radius in found["eps"]]
    rows, lines = [["arm", "accuracy", "clean", *eps]], [["", "clean", *eps], ["---"] * (len(eps) + 2)]
    for arm, one in found["arms"].items():
        clean, certified = _percent(one["clean"]), [_percent(share) for share in one["certified"]]
        for attack, shares in one["attacked"].items():
            rows.append([arm, f"under {attack}", clean, *map(_percent, shares)])
        rows.append([arm, "certified", clean, *certified])
        lines.append([arm, clean, *map(_percent, one["attacked"]["worst"])])
        lines.append([f"{arm}, certified", "", *certified])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(folder / "table.csv", text.getvalue())
    write_text(folder / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))


def summary(found: Findings) -> str:
    """Returns what is printed at the end."""
    eps = found["eps"]
    worst = f"accuracy under the worst of {', '.join(ATTACKS)}, and certified, in percent"
    lines = [f"\n{found['data']}: {worst}", f"{'':24}{'clean':>7}" + "".join(f"{radius:>7.3g}" for radius in eps)]
    for arm, one in found["arms"].items():
        for title, values in ((arm, one["attacked"]["worst"]), ("  certified", one["certified"])):
            clean = _percent(one["clean"]) if title == arm else ""
            lines.append(f"{title:24}{clean:>7}" + "".join(f"{_percent(value):>7}" for value in values))
    lines.append("")
    for line in found["verdict"]:
        own = f"{line['arm']} at {line['eps']:g}: {_percent(line['accuracy'])}"
        if line["best_other"] is None:
            lines.append(f"{own}; no other method is within {100 * COMPARABLE:g} points of its clean accuracy")
        else:
            sign = "ahead of" if line["ahead"] else "not ahead of"
            lines.append(f"{own}, {sign} {line['best_other']} with {_percent(line['best_other_accuracy'])}")
    smallest = min(one["smallest_ratio"] for one in found["arms"].values())
    if found["broken"]:
        lines.append(f"\nCERTIFICATES WERE BROKEN, images by attack: {found['broken']}")
    else:
        lines.append(
            f"\nNo attack changed an answer within its certified radius; the nearest came to {smallest:.5f} of it"
        )
    lines.append(f"Took {found['seconds']:.0f} s, {found['cpu_seconds']:.0f} s of processor time")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
