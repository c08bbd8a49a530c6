"""What takes minutes before the first cluster test, done ahead of them: `python -m cluster.prepare` (in `tests/`)."""

from __future__ import annotations

import sys

from cluster.images import images
from cluster.node import build, unfit


def main() -> None:
    """Build the cluster and the images where they are missing, or say why this machine runs no cluster."""
    if reason := unfit():
        print(f"no cluster of our own: {reason}", file=sys.stderr)
        return
    build()
    for image in images():
        print(f"{image.tag}: {sum(layer.size for layer in image.layers) / 1e6:.0f} MB in {len(image.layers)} layers")


if __name__ == "__main__":
    main()
