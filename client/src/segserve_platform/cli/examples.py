"""Examples at the end of each command's help; tests run their options."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "demo": ("segserve demo", "segserve demo --keep --port 8080"),
    "init": (
        "segserve init photos/ best.onnx",
        "segserve init photos/ best.onnx -o streets --classes background,road,car",
        "segserve init photos/ best.onnx --family semantic-logits --force",
    ),
    "up": ("segserve up -f model.yaml", "segserve up --detach -f model.yaml", "segserve up --port 9000"),
    "down": ("segserve down", "segserve down --forget"),
    "doctor": ("segserve doctor", "segserve doctor --context prod", "segserve doctor -o json"),
    "logs": ("segserve logs", "segserve logs coins -c triton -f", "segserve logs -o json"),
    "apply": (
        "segserve apply -f model.yaml",
        "segserve apply -f models/ --recursive --dry-run",
        "segserve apply -n vision -f model.yaml -f pool.yaml",
    ),
    "delete": ("segserve delete coins", "segserve delete -f model.yaml --no-wait"),
    "get": ("segserve get -w", "segserve get coins -o yaml", "segserve get -o wide -n vision"),
    "describe": ("segserve describe coins",),
    "why": ("segserve why coins", "segserve why coins --since 4h -n vision", "segserve why coins -o json"),
    "wait": ("segserve wait coins --timeout 5m", "segserve wait coins --for delete"),
    "predict": (
        "segserve predict coins photo.jpg -o overlay.png",
        "segserve predict coins 'photos/*.jpg' -o overlays/ --in-flight 8",
        "segserve predict coins photos/ --recursive --coco found.json --masks masks/",
        "curl -s https://example.org/photo.jpg | segserve predict coins -",
    ),
    "batch": (
        "segserve batch coins slide.tif --output found/",
        "segserve batch coins 'slides/*.tif' --output found/ --tile 2048 --format tiff",
        "segserve batch trees ortho.tif --output found/ --format geojson --affine 0.1 0 500000 0 -0.1 5800000",
        "segserve batch coins slide.zarr --output found/ --scheduler tcp://scheduler:8786",
    ),
    "build": (
        "segserve build -f model.yaml -o repository/ --cpus 4",
        "segserve build -f model.yaml -o repository/ --triton 26.04 --backend onnxruntime --device gpu "
        "--check /opt/tritonserver/bin/tritonserver",
    ),
    "crds": ("segserve crds | kubectl apply --server-side -f -", "segserve crds -o crds/"),
    "schema": ("segserve schema -o .segserve/schema.json",),
    "openapi": ("segserve openapi -o openapi.json", "segserve openapi coins -n vision"),
    "ui": (
        "segserve ui",
        "segserve ui --port 8090 --no-open",
        "segserve ui -n vision --prometheus http://localhost:9090",
    ),
    "annotate": (
        "segserve annotate coins sam --label-studio http://127.0.0.1:8081",
        "segserve annotate coins --port 9000 --allow https://images.example.org",
    ),
    "version": ("segserve version", "segserve version -o json", "segserve version --client"),
    "export": (
        "segserve export net.py:make --weights best.pth --family semantic-logits --classes background,road "
        "--name roads --images photos/ -o roads/",
        "segserve export roads/model.yaml --precision int8 --images photos/",
    ),
    "eval": (
        "segserve eval coins --data annotations.json",
        "segserve eval streets --data val/ -o streets-val/ --classes road,car --score-threshold 0.01",
    ),
    "diff": (
        "segserve diff coins coins-next photos/",
        "segserve diff coins coins-next 'photos/*.jpg' -o sheet/ --at-least 0.95",
    ),
    "calibrate": ("segserve calibrate photos/ labels/ -f model.yaml",),
    "samples list": (
        "segserve samples list coins --reason empty --limit 20",
        "segserve samples list coins -o json",
    ),
    "samples show": ("segserve samples show coins 1763800000000-0123456789abcdef --image sample.jpg",),
    "samples export": ("segserve samples export coins --output labels/ --to coco --limit 100",),
    "samples label-back": ("segserve samples label-back coins labels/corrected.json --golden golden/",),
    "samples delete": (
        "segserve samples delete coins --request-id 7d1c3e9a-6a0a-4c7e-9d0e-3c9a1f1c2b11",
        "segserve samples delete coins --older-than 720h",
    ),
    "golden record": ("segserve golden record photos/ -f model.yaml",),
    "golden cascade": ("segserve golden cascade -f model.yaml --max-loss 0.01",),
    "golden threshold": ("segserve golden threshold photos/ -f model.yaml",),
    "golden digest": ("segserve golden digest golden/",),
    "runtime install": ("segserve runtime install",),
    "rollout status": ("segserve rollout status coins -w", "segserve rollout status coins -o json"),
    "rollout list": ("segserve rollout list", "segserve rollout list coins -o yaml"),
    "rollout replay": (
        "segserve rollout replay coins",
        "segserve rollout replay coins-ba49ef2491-6b00f192 --with stricter.yaml",
    ),
    "rollout sheet": ("segserve rollout sheet coins -o coins-sheet/",),
    "rollout promote": ("segserve rollout promote coins",),
    "rollout abort": ("segserve rollout abort coins --timeout 30s",),
    "rollout pause": ("segserve rollout pause coins",),
    "rollout resume": ("segserve rollout resume coins",),
    "rollout retry": ("segserve rollout retry coins",),
    "rollout rollback": ("segserve rollout rollback coins -n vision",),
    "rollout skip-gate": ("segserve rollout skip-gate latency coins",),
    "completion": ("source <(segserve completion bash)", "segserve completion fish | source"),
}


def epilog(command: str) -> str | None:
    """Return the examples for the help of a command."""
    lines = EXAMPLES.get(command)
    return None if lines is None else "\n\n".join(["Examples:", *(f"- `{line}`" for line in lines)])
