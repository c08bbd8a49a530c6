"""Prints torchmetrics' figures of arrays: `python torchmetrics_figures.py ARRAYS.npz PACKAGES`.

It runs with the torch of `.venv`; torchmetrics alone is of the folder PACKAGES, whose other packages come last.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def main(file: str, packages: str) -> None:
    sys.path.append(packages)
    import torch
    from torchmetrics.classification import (
        BinaryCalibrationError,
        MulticlassCalibrationError,
        MulticlassF1Score,
        MulticlassJaccardIndex,
    )
    from torchmetrics.detection import PanopticQuality

    arrays = {name: torch.from_numpy(each) for name, each in np.load(file).items()}
    true, found = arrays["true"].long(), arrays["found"].long()
    ignored = {"num_classes": 3, "average": "none", "ignore_index": 255}
    quality = PanopticQuality({1, 2}, {0}, return_per_class=True)
    quality.update(arrays["found_segments"].long(), arrays["true_segments"].long())
    confidence = arrays["confidence"].double()
    # The other two classes share what is left, so that the answer is the likeliest one.
    probabilities = torch.stack(
        [torch.where(found == number, confidence, (1 - confidence) / 2) for number in range(3)], 1
    )
    figures = {
        "iou": MulticlassJaccardIndex(**ignored)(found, true),
        "dice": MulticlassF1Score(**ignored, multidim_average="global")(found, true),
        "pq": quality.compute()[0],  # things first
        "pixelEce": MulticlassCalibrationError(3, n_bins=15, ignore_index=255)(probabilities, true),
        "objectEce": BinaryCalibrationError(n_bins=15)(arrays["scores"].double(), arrays["right"].long()),
    }
    json.dump({name: each.tolist() for name, each in figures.items()}, sys.stdout)


main(*sys.argv[1:])
