#!/bin/bash
# Stop the cluster and remove what up.sh made. Safe to call at any time.
# Ending the node's init process ends every process in its pid namespace, and
# with the last one go its mounts, its network and the veth.
set -euo pipefail
. "$(dirname "$0")/env.sh"
[ ! -d "$KT_RUN/crd-server" ] || "$KT_HERE/crd-server.sh" stop
if [ -e "$KT_RUN/second/settings" ]; then (set -a; . "$KT_RUN/second/settings"; "$KT_HERE/down.sh" --quiet); fi
if alive; then
  pid=$(cat "$KT_RUN/node.pid")
  kill -KILL "$pid"
  for _ in $(seq 200); do [ -e "/proc/$pid" ] || break; sleep 0.05; done
fi
if joins; then
  # the link goes with its other end, but only after a while; and a node that was lost leaves a route to nowhere
  first ip link del "$KT_LINK" 2>/dev/null || true
  first ip route del blackhole "$KT_POD_CIDR" 2>/dev/null || true
else
  ip link del "$KT_LINK" 2>/dev/null || true
fi
# cgroups go from the leaves up; a just ended process may hold one for a moment
for _ in $(seq 50); do
  find /sys/fs/cgroup/*/"$KT_CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
  compgen -G "/sys/fs/cgroup/*/$KT_CGROUP" >/dev/null || break; sleep 0.1
done
if [ -d "$KT_RUN" ]; then
  grep -q " $KT_RUN/" /proc/self/mounts && { echo "still mounted below $KT_RUN:" >&2; grep " $KT_RUN/" /proc/self/mounts >&2; exit 1; }
  # folders that up.sh made as mount points; whatever else may have come into them keeps them
  [ ! -e "$KT_RUN/made" ] || while read -r folder; do rmdir "$folder" 2>/dev/null || true; done <"$KT_RUN/made"
  rm -rf --one-file-system "$KT_RUN"
fi
[ "${1-}" = --quiet ] || echo down
