#!/bin/bash
# Start the tests' cluster, and leave it up. What is missing is made first: minutes, once.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
image=$("$HERE/build.sh")
. "$HERE/settings.sh"  # by now there may be a Docker daemon of our own
runs() { [ "$(docker inspect --format '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }
if [ -e "$STATE/ready" ] && runs "$NAME-control-plane"; then exit; fi
kind delete cluster --quiet --name "$NAME" --kubeconfig "$KUBECONFIG"  # of which a part may be left
rm -rf "$STATE"
mkdir -p "$STATE"
[ -z "${SEGSERVE_TEST_RUN-}" ] || echo "$SEGSERVE_TEST_RUN" >"$STATE/test-run"  # the run that has to delete it
kind create cluster --name "$NAME" --kubeconfig "$KUBECONFIG" --image "$image" --config "$HERE/kind.yaml"
kubectl taint node "$NAME-control-plane" node-role.kubernetes.io/control-plane- >/dev/null
kubectl taint node "$NAME-worker" segserve.dev/second-node=:NoSchedule >/dev/null
kubectl cordon "$NAME-worker" >/dev/null  # a test that may lose it brings its images
"$HERE/network.sh"
kubectl wait --for condition=Ready node --all --timeout 120s >/dev/null
kubectl -n kube-system rollout status deployment/coredns --timeout 120s >/dev/null
touch "$STATE/ready"
