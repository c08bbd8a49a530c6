#!/bin/bash
# Start a single-node Kubernetes cluster with real pods, from Debian packages and
# the binaries build.sh made. Everything lives in namespaces of one init process:
#   net    the node has its own network, with one veth to the host and no way out
#   mount  overlayfs, tmpfs and volume mounts vanish with the node
#   pid    down.sh ends one process, and the kernel ends all the others
# Nothing on the host changes but: one veth, two routes, cgroups named $KT_CGROUP,
# $KT_RUN, and two empty folders (/var/lib/cni, /var/lib/kubelet) that are mount
# points inside the node; down.sh removes them all. Ends when the node is Ready. Needs root.
set -eEuo pipefail
. "$(dirname "$0")/env.sh"
alive && [ -e "$KT_RUN/ready" ] && { echo "already up: KUBECONFIG=$KT_RUN/admin.conf"; exit 0; }
[ -d /sys/fs/cgroup/memory ] && [ -d /sys/fs/cgroup/cpu ] || { echo "needs the cgroup v1 hierarchies below /sys/fs/cgroup" >&2; exit 1; }
case $KT_RUN/ in /run/* | /var/run/* | /var/log/*) echo "KT_RUN must not be below /run or /var/log" >&2; exit 1;; esac
[ "${#KT_RUN}" -le 60 ] || { echo "KT_RUN is too long for the Unix sockets below it" >&2; exit 1; }
"$KT_HERE/down.sh" --quiet
for b in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl kt-init; do
  [ -x "$KT_BIN/$b" ] || { echo "no $KT_BIN/$b: run build.sh first" >&2; exit 1; }; done
began=$(date +%s%N); lap() { [ -z "${KT_VERBOSE-}" ] || printf '[%5d ms] %s\n' $((($(date +%s%N)-began)/1000000)) "$*"; }
trap 'echo "cluster-up failed; logs are in $KT_RUN/log" >&2' ERR
mkdir -p "$KT_RUN"/{log,pid,command,pki,cni,sysctl,etcd,kubelet,containerd,private/log,private/cni,private/kubelet}
for folder in /var/lib/cni /var/lib/kubelet; do
  [ -d "$folder" ] || { echo "$folder" >>"$KT_RUN/made"; mkdir "$folder"; }
done
[ -z "${SEGSERVE_TEST_RUN-}" ] || echo "$SEGSERVE_TEST_RUN" >"$KT_RUN/test-run"  # who has to end it
mkdir -p "$KT_STORE"
cd "$KT_RUN"
! joins || set | grep '^KT_[A-Z_]*=' >settings  # for down.sh, which ends it with the first node

# -- certificates: one CA; every component has its own identity ----------------
if joins; then cp -p "$KT_JOIN"/pki/ca.* pki; cp -p "$KT_JOIN/admin.conf" .; else
  openssl ecparam -name prime256v1 -genkey -noout -out pki/ca.key
  openssl req -x509 -new -key pki/ca.key -subj /CN=kt-ca -days 30 -out pki/ca.crt
fi
cert() { # NAME SUBJECT [SUBJECT-ALT-NAMES]
  openssl ecparam -name prime256v1 -genkey -noout -out "pki/$1.key"
  openssl req -new -key "pki/$1.key" -subj "$2" |
    openssl x509 -req -CA pki/ca.crt -CAkey pki/ca.key -set_serial "0x$(openssl rand -hex 8)" -days 30 -out "pki/$1.crt" \
      -extfile <(printf 'keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n%s' "${3:+subjectAltName=$3}") 2>/dev/null
}
kubeconfig() { # NAME FILE
  cat >"$2" <<Y
apiVersion: v1
kind: Config
clusters: [{name: kt, cluster: {server: "https://$KT_API_IP:6443", certificate-authority-data: $(base64 -w0 pki/ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "pki/$1.crt"), client-key-data: $(base64 -w0 "pki/$1.key")}}]
contexts: [{name: kt, context: {cluster: kt, user: $1}}]
current-context: kt
Y
}
joins || cert apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$KT_NODE_IP,IP:$KT_SERVICE_IP,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
joins || { cert admin /O=system:masters/CN=admin; kubeconfig admin admin.conf; }
cert kubelet "/O=system:nodes/CN=system:node:$KT_NODE" "IP:$KT_NODE_IP,DNS:$KT_NODE"
for c in kube-controller-manager kube-scheduler kube-proxy; do cert $c /CN=system:$c; kubeconfig $c $c.conf; done
kubeconfig kubelet kubelet.conf
joins || { openssl genrsa -out pki/sa.key 2048 2>/dev/null; openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null; }
lap certificates

# -- configuration -------------------------------------------------------------
cat >containerd.toml <<T
version = 2
root = "$KT_STORE"
state = "$KT_RUN/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "$KT_RUN/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true  # CAP_SYS_RESOURCE may be missing: never go below our own score
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$KT_RUN/cni"
T
cat >cni/10-kt.conflist <<J
{"cniVersion": "0.4.0", "name": "kt", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$KT_RUN/cni-leases",
            "ranges": [[{"subnet": "$KT_POD_CIDR", "gateway": "$KT_POD_GATEWAY"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
: >resolv.conf
cat >kubelet.yaml <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $KT_RUN/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $KT_RUN/pki/kubelet.crt
tlsPrivateKeyFile: $KT_RUN/pki/kubelet.key
address: 0.0.0.0
readOnlyPort: 0
cgroupDriver: cgroupfs
cgroupRoot: /$KT_CGROUP
cgroupsPerQOS: true
enforceNodeAllocatable: []
protectKernelDefaults: true       # see "sysctl" below: kubelet must not set the host's kernel.panic and others
failSwapOn: false
maxOpenFiles: $(ulimit -Hn)
oomScoreAdj: 0
resolvConf: $KT_RUN/resolv.conf
clusterDNS: ["$KT_API_IP"]
clusterDomain: cluster.local
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 1s
syncFrequency: 2s
maxPods: 100
volumePluginDir: $KT_RUN/kubelet/plugins
Y

# -- the node's namespaces, network and cgroups ----------------------------------
for c in /sys/fs/cgroup/*/; do
  case $c in */unified/) continue;; esac
  mkdir -p "$c$KT_CGROUP"
  for f in cpuset.cpus cpuset.mems; do [ ! -e "$c$f" ] || cat "$c$f" >"$c$KT_CGROUP/$f"; done
done
# Else all pods together get as much of a busy machine's processors as one of its other sessions.
echo 10240 >"/sys/fs/cgroup/cpu/$KT_CGROUP/cpu.shares"
setsid unshare --mount --net --uts --ipc --pid --fork --mount-proc --propagation private "$KT_BIN/kt-init" </dev/null >log/init.log 2>&1 &
parent=$!
for _ in $(seq 100); do child=$(cat "/proc/$parent/task/$parent/children" 2>/dev/null || true)
  [ -n "$child" ] && [ "$(cat "/proc/${child% }/comm" 2>/dev/null)" = kt-init ] && break; sleep 0.02; done
echo "${child% }" >node.pid; alive
if joins; then
  # by the first node, which forwards: a link between the two, and routes to the pods of each
  first ip link add "$KT_LINK" type veth peer name eth0 netns "$(cat node.pid)"
  first ip addr add "$KT_HOST_IP/30" dev "$KT_LINK"; first ip link set "$KT_LINK" up
  first ip route replace "$KT_POD_CIDR" via "$KT_NODE_IP"
  ip route replace "$KT_POD_CIDR" via "$KT_API_IP"; ip route replace "$KT_NODE_IP" via "$KT_API_IP"
else
  ip link add "$KT_LINK" type veth peer name eth0 netns "$(cat node.pid)"
  ip addr add "$KT_HOST_IP/30" dev "$KT_LINK"; ip link set "$KT_LINK" up
  ip route add "$KT_POD_CIDR" via "$KT_NODE_IP"; ip route add "$KT_SERVICE_CIDR" via "$KT_NODE_IP"
fi
node sh -eu -c "
  ip link set lo up; ip addr add $KT_NODE_IP/30 dev eth0; ip link set eth0 up
  # Services need some route (kube-proxy rewrites them before they leave); the rest of the world gets none
  ip link add void0 type bridge; ip link set void0 up; ip route add $KT_SERVICE_CIDR dev void0; ip route add unreachable default
  [ -z '$KT_JOIN' ] || for there in $KT_FIRST; do ip route add \$there via $KT_HOST_IP; done
  echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
  hostname $KT_NODE
  mount -t tmpfs -o size=512m tmpfs $KT_RUN/etcd
  # places that containerd, the CNI plugins and kubelet write to whatever their configuration says
  mount -t tmpfs -o mode=755 tmpfs /run
  mount --bind $KT_RUN/private/log /var/log; mount --bind $KT_RUN/private/cni /var/lib/cni; mount --bind $KT_RUN/private/kubelet /var/lib/kubelet
  # kubelet insists on these values; it gets to see them, and the host keeps its own
  for s in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    f=$KT_RUN/sysctl/\$(echo \${s%=*} | tr / .); echo \${s#*=} >\$f; mount --bind \$f /proc/sys/\${s%=*}; done"
lap namespaces

# -- the components ---------------------------------------------------------------
wait_for() { local what=$1; shift; for _ in $(seq 600); do "$@" >/dev/null 2>&1 && { lap "$what"; return; }; sleep 0.1; done; echo "not in 60 s: $what" >&2; return 1; }

joins || start etcd etcd --name kt --data-dir etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --logger zap --log-level warn
# The API server remembers all since its start. With this before it there is a version that it never knew, the first.
written() { node bash -c 'said="{\"key\":\"Zmlyc3Q=\",\"value\":\"MQ==\"}"; exec 3<>/dev/tcp/127.0.0.1/2379 &&
  printf "POST /v3/kv/put HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" ${#said} "$said" >&3 && grep -q revision <&3'; }
joins || wait_for "etcd written" written
rm -rf "$KT_STORE/io.containerd.grpc.v1.cri"
start containerd containerd --config containerd.toml
joins || start kube-apiserver "$KT_BIN/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --bind-address 0.0.0.0 --secure-port 6443 \
  --advertise-address "$KT_NODE_IP" --service-cluster-ip-range "$KT_SERVICE_CIDR" --allow-privileged=true \
  --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --client-ca-file pki/ca.crt \
  --tls-cert-file pki/apiserver.crt --tls-private-key-file pki/apiserver.key \
  --service-account-issuer https://kubernetes.default.svc --service-account-key-file pki/sa.pub --service-account-signing-key-file pki/sa.key \
  --kubelet-client-certificate pki/admin.crt --kubelet-client-key pki/admin.key --kubelet-certificate-authority pki/ca.crt \
  --kubelet-preferred-address-types InternalIP
wait_for containerd ctr_ version
# images are kept, containers of an earlier run are not
for container in $(ctr_ containers list -q); do ctr_ containers rm "$container"; done
(for image in "$KT_IMAGES"/*.tar; do ctr_ images import "$image"; done; lap "images imported" >&3) 3>&1 >log/import.log 2>&1 &
import=$!
wait_for "API ready" kctl get --raw /readyz
joins || start kube-controller-manager "$KT_BIN/kube-controller-manager" --kubeconfig kube-controller-manager.conf --leader-elect=false --bind-address 127.0.0.1 \
  --use-service-account-credentials --service-account-private-key-file pki/sa.key --root-ca-file pki/ca.crt \
  --cluster-signing-cert-file pki/ca.crt --cluster-signing-key-file pki/ca.key \
  --kube-api-qps 200 --kube-api-burst 400
joins || start kube-scheduler "$KT_BIN/kube-scheduler" --kubeconfig kube-scheduler.conf --leader-elect=false --bind-address 127.0.0.1
start kubelet env AWS_EC2_METADATA_DISABLED=true "$KT_BIN/kubelet" --config kubelet.yaml --kubeconfig kubelet.conf --hostname-override "$KT_NODE" --node-ip "$KT_NODE_IP" \
  --root-dir "$KT_RUN/kubelet" --cert-dir "$KT_RUN/pki" ${KT_TAINTS:+--register-with-taints "$KT_TAINTS"} --container-runtime remote --container-runtime-endpoint "unix://$KT_RUN/containerd.sock"
joins || start kube-dns /usr/bin/python3 "$KT_HERE/kube_dns.py" --listen "$KT_NODE_IP" --server "https://$KT_NODE_IP:6443" --pki pki
wait_for "default service account" kctl get serviceaccount default
wait_for "node registered" kctl get node "$KT_NODE"   # kube-proxy started earlier backs off for up to half a minute
start kube-proxy "$KT_BIN/kube-proxy" --kubeconfig kube-proxy.conf --hostname-override "$KT_NODE" --proxy-mode iptables --cluster-cidr "$KT_POD_CIDR" \
  --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0s --conntrack-tcp-timeout-close-wait 0s --oom-score-adj 0
wait_for "node Ready" sh -c "'$KT_BIN/kubectl' --kubeconfig admin.conf --cache-dir kubectl get node $KT_NODE -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].status}' | grep -q True"
wait $import
touch ready
echo "up in $((($(date +%s%N)-began)/1000000)) ms: KUBECONFIG=$KT_RUN/admin.conf"
