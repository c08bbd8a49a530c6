#!/bin/bash
# Make sure that a Docker daemon answers: the machine's, else Debian's with all its state in one folder (root).
set -euo pipefail
. "$(dirname "$0")/settings.sh"
docker info >/dev/null 2>&1 && exit
[ "$(id -u)" = 0 ] || { echo "no Docker daemon answers, and only root can start one" >&2; exit 1; }
sh "$HERE/../system.sh" docker.io iptables iproute2 jq libcap2-bin
mkdir -p "$DOCKER" "$BIN"
# Another docker on the PATH may be newer, and lack the plugin that builds images.
ln -sf /usr/bin/docker "$BIN/docker"
rm -f "$DOCKER/docker.pid"  # a daemon that crashed left it: another process may have its id
# Without the mark of a test run, which ends what has its mark before it deletes the cluster.
env --unset=SEGSERVE_TEST_RUN setsid dockerd --data-root "$DOCKER/data" --exec-root "$DOCKER/exec" \
  --pidfile "$DOCKER/docker.pid" --host "unix://$DOCKER/docker.sock" --add-runtime "capable=$HERE/runc" --default-runtime capable \
  </dev/null >>"$DOCKER/dockerd.log" 2>&1 &
export DOCKER_HOST=unix://$DOCKER/docker.sock
for _ in $(seq 150); do
  if docker info >/dev/null 2>&1; then
    # All containers together would get as much of a busy machine's processors as a single process.
    shares=/sys/fs/cgroup/cpu/docker/cpu.shares
    [ ! -d /sys/fs/cgroup/cpu ] || { mkdir -p "${shares%/*}"; echo 10240 >"$shares"; }
    exit
  fi
  sleep 0.2
done
tail -n 5 "$DOCKER/dockerd.log" >&2
exit 1
