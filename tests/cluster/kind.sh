#!/bin/bash
# Run the cluster tests on kind: make a cluster, load the test images, test, delete it (KEEP=1 leaves it).
# Arguments go to pytest. Needs docker, kind and kubectl, and says which is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
NAME=segserve-test OUT=$PWD/out/kind BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

missing=
for tool in docker kind kubectl; do command -v $tool >/dev/null || missing="$missing $tool"; done
[ -z "$missing" ] || { echo "make e2e-kind needs what is not in PATH:$missing" >&2; exit 1; }
docker info >/dev/null 2>&1 || { echo "make e2e-kind needs a Docker daemon that runs: docker info fails" >&2; exit 1; }

mkdir -p "$OUT"
[ -n "${KEEP-}" ] || trap 'kind delete cluster --name $NAME --kubeconfig "$OUT/admin.conf"; rm -rf "$OUT"' EXIT
kind get clusters | grep -qx $NAME || kind create cluster --name $NAME --kubeconfig "$OUT/admin.conf" --wait 120s
base=$(docker create $BASE_IMAGE); docker export "$base" >"$OUT/base.tar"; docker rm "$base" >/dev/null
(cd tests && SEGSERVE_TEST_BASE="$OUT/base.tar" ../.venv/bin/python -m cluster.images "$OUT/images.tar")
kind load image-archive --name $NAME "$OUT/images.tar"

# pods reach this machine at the gateway of kind's network
SEGSERVE_TEST_HOST=$(docker network inspect kind --format '{{range .IPAM.Config}}{{println .Gateway}}{{end}}' | grep -m 1 '\.')
export SEGSERVE_TEST_HOST SEGSERVE_TEST_THROWAWAY=1 SEGSERVE_TEST_KUBECONFIG=$OUT/admin.conf
.venv/bin/pytest -m cluster "$@"
