# Settings that the scripts beside this file share. The caller may set KIND_CACHE, KIND_NAME, DOCKER_HOST, and
# SEGSERVE_TEST_KUBERNETES=1.35 for that minor version, which has a go.mod of its own.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GO_MOD=$HERE/go${SEGSERVE_TEST_KUBERNETES:+-$SEGSERVE_TEST_KUBERNETES}.mod
KUBERNETES=$(awk '$1 == "k8s.io/kubernetes" && $2 ~ /^v/ { print $2 }' "$GO_MOD")
CACHE=${KIND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/segserve/kind-$KUBERNETES}
NAME=${KIND_NAME:-segserve}    # the cluster's, and the beginning of its nodes' names
STATE=$CACHE/clusters/$NAME    # what a running cluster needs; down.sh removes it
DOCKER=$CACHE/docker           # all that a Docker daemon of our own writes
BUILT=$CACHE/built             # programs
# Of these, kind, kubectl and docker alone are on the PATH: Docker would take a containerd or a shim there for its own.
BIN=$CACHE/bin
export PATH=$BIN:$PATH KUBECONFIG=$STATE/kubeconfig
# The socket is there while docker.sh has a daemon of our own running.
[ ! -S "$DOCKER/docker.sock" ] || export DOCKER_HOST=${DOCKER_HOST:-unix://$DOCKER/docker.sock}
