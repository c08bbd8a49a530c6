#!/bin/bash
# Connect pods with each other and with this machine: each node gets a CNI configuration with its own range of addresses,
# and there are routes to it from the other nodes and from this machine. A node that comes back has lost its routes.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
declare -A range address
nodes=$(kind get nodes --name "$NAME")
for node in $nodes; do
  kubectl wait --for jsonpath='{.spec.podCIDR}' "node/$node" --timeout 60s >/dev/null
  range[$node]=$(kubectl get node "$node" -o jsonpath='{.spec.podCIDR}')
  address[$node]=$(docker inspect --format '{{.NetworkSettings.Networks.kind.IPAddress}}' "$node")
done
route() { $([ "$(id -u)" = 0 ] || echo sudo) ip route replace "$1" via "$2"; } # RANGE ADDRESS
for node in $nodes; do
  # Leases are below /run, and so end with the node.
  docker exec -i "$node" sh -c 'cat >/etc/cni/net.d/10-segserve.conflist' <<J
{"cniVersion": "1.0.0", "name": "segserve", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "/run/cni-leases",
   "ranges": [[{"subnet": "${range[$node]}"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
  route "${range[$node]}" "${address[$node]}"
  for other in $nodes; do
    [ "$other" = "$node" ] || docker exec "$node" ip route replace "${range[$other]}" via "${address[$other]}"
  done
done
route 10.96.0.0/16 "${address[$NAME-control-plane]}"  # Services
