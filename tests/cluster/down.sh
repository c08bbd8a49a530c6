#!/bin/bash
# Delete the tests' cluster, and end the Docker daemon of our own if nothing else runs in it. Safe to call at any time.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
if [ -x "$BIN/kind" ] && docker info >/dev/null 2>&1; then
  kind delete cluster --quiet --name "$NAME" --kubeconfig "$KUBECONFIG"
  for range in $(ip route show root 10.244.0.0/16 | awk '{ print $1 }') 10.96.0.0/16; do
    $([ "$(id -u)" = 0 ] || echo sudo) ip route del "$range" 2>/dev/null || true
  done
fi
rm -rf "$STATE"
pid=$(cat "$DOCKER/docker.pid" 2>/dev/null || true)
# The file may be of a daemon that crashed, whose id another process has by now.
if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] && [ -z "$(docker ps --quiet)" ]; then
  kill "$pid"
  while [ -e "/proc/$pid" ]; do sleep 0.1; done
  rm -f "$DOCKER/docker.sock"
fi
