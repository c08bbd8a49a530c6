# Settings shared by the cluster scripts; each can be set by the caller.
KT_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
KT_CACHE=${KT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/segserve/kubernetes-1.20.2}   # kept between runs: source, binaries, base images
KT_BIN=${KT_BIN:-$KT_CACHE/bin}
KT_IMAGES=${KT_IMAGES:-$KT_CACHE/images}   # every *.tar here is imported at start
KT_RUN=${KT_RUN:-/var/lib/kt}          # one cluster's state, removed by down.sh
KT_STORE=${KT_STORE:-$KT_CACHE/containerd/$(basename "$KT_RUN")}   # its images, kept between runs
KT_NODE=${KT_NODE:-kt-node}            # the node's name in Kubernetes
KT_TAINTS=${KT_TAINTS-}               # which pods stay away from it, as for kubelet --register-with-taints
KT_CGROUP=${KT_CGROUP:-kt}             # /sys/fs/cgroup/*/$KT_CGROUP, pods' parent
KT_LINK=${KT_LINK:-kt0}                # veth on the host
KT_HOST_IP=${KT_HOST_IP:-172.31.240.1} # the host's side; pods and webhooks reach the host here
KT_NODE_IP=${KT_NODE_IP:-172.31.240.2} # the node's side; API at https://$KT_NODE_IP:6443
KT_API_IP=${KT_API_IP:-$KT_NODE_IP}    # the API server's and the DNS's node: of a node that joins, the first one
KT_JOIN=${KT_JOIN-}                   # the state of the cluster that it joins as a second node
KT_FIRST=${KT_FIRST-}                 # and what it reaches through the first node: addresses
KT_POD_CIDR=${KT_POD_CIDR:-10.244.0.0/24}
KT_POD_GATEWAY=${KT_POD_GATEWAY:-10.244.0.1}
KT_SERVICE_CIDR=${KT_SERVICE_CIDR:-10.96.0.0/16}
KT_SERVICE_IP=${KT_SERVICE_IP:-10.96.0.1} # first of the above: the API's own Service

# Run a command in all of the node's namespaces: without -u its host name would be set on the host.
node() { nsenter -t "$(cat "$KT_RUN/node.pid")" -m -n -u -i -p -- "$@"; }
joins() { [ -n "$KT_JOIN" ]; }
first() { nsenter -t "$(cat "$KT_JOIN/node.pid")" -n -- "$@"; } # in the network of the node that it joins
ctr_() { node ctr -a "$KT_RUN/containerd.sock" -n k8s.io "$@"; }
load_image() { ctr_ images import - <"$1"; }
# The cache goes with the cluster; kubectl's own place is the home of whoever calls.
kctl() { "$KT_BIN/kubectl" --kubeconfig "$KT_RUN/admin.conf" --cache-dir "$KT_RUN/kubectl" "$@"; }
alive() { [ -s "$KT_RUN/node.pid" ] && [ -e "/proc/$(cat "$KT_RUN/node.pid")/ns/net" ] &&
  [ "$(cat "/proc/$(cat "$KT_RUN/node.pid")/comm" 2>/dev/null)" = kt-init ]; }

# Start a component: its pid, as the node sees it, goes to pid/NAME, its command to command/NAME.
start() { # NAME COMMAND...
  local name=$1; shift
  printf '%q ' "$@" >"$KT_RUN/command/$name"
  setsid nsenter -t "$(cat "$KT_RUN/node.pid")" -m -n -u -i -p -- sh -c "cd $KT_RUN; echo \$\$ >pid/$name; exec \"\$@\"" - "$@" </dev/null >>"$KT_RUN/log/$name.log" 2>&1 &
}
restart() { eval "start $1 $(cat "$KT_RUN/command/$1")"; } # NAME
# nsenter stops itself with what it started, and goes on with nobody: it is sent on by hand, or it outlives the node.
send() { # SIGNAL NAME
  node kill "-$1" "$(cat "$KT_RUN/pid/$2")"
  [ "$1" != CONT ] || ps -eo pid=,stat=,args= | awk -v node="$(cat "$KT_RUN/node.pid")" \
    '$2 ~ /^T/ && $3 == "nsenter" && $5 == node { print $1 }' | xargs -r kill -CONT
}
