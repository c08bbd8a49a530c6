#!/bin/bash
# A current CRD server (apiextensions-apiserver 1.36, from Debian sid's library packages) beside the 1.20 cluster:
# CEL rules, unknown-field errors, selectableFields, defaulting as today's users have them. It serves CRDs and their
# objects only; namespaces, pods and the rest stay with the cluster, which also answers who may do what.
#   crd-server.sh build    once, about 3 min; the machine's own apt sources stay untouched
#   crd-server.sh start    needs up.sh before; prints the KUBECONFIG to use
#   crd-server.sh stop
# It has no root discovery: use typed clients or raw paths (kubectl get --raw /apis/GROUP/VERSION/...), not kubectl apply.
set -euo pipefail
. "$(dirname "$0")/env.sh"
CRD_CACHE=${CRD_CACHE:-$(dirname "$KT_CACHE")/crd-server}
CRD_RUN=${CRD_RUN:-$KT_RUN/crd-server}
CRD_PORT=${CRD_PORT:-17444}; CRD_ETCD=${CRD_ETCD:-24790}
server=$CRD_CACHE/bin/apiextensions-apiserver

build() {
  [ -x "$server" ] && [ -x "$CRD_CACHE/bin/etcd" ] && return
  local mirror work=$CRD_CACHE/work
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
  mkdir -p "$work"/{lists,archives}/partial "$work"/{root,debs} "$CRD_CACHE/bin"; : >"$work/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
  cat >"$work/apt.conf" <<A
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache::archives "$work/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
A
  ( export APT_CONFIG=$work/apt.conf
    apt-get -qq update
    apt-get install -s golang-k8s-apiextensions-apiserver-dev golang-go etcd-server |
      awk '/^Inst/ {print $2}' | grep -E '^(golang|etcd-server$)' >"$work/packages"
    cd "$work/debs" && xargs apt-get -qq download <"$work/packages" )
  for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar x -C "$work/root" --exclude=./usr/share/doc --exclude=./usr/share/man
  done
  local goroot version
  goroot=$(ls -d "$work"/root/usr/lib/go-1.* | sort -V | tail -n 1)
  version=$(dpkg-deb -f "$work"/debs/golang-k8s-apiextensions-apiserver-dev_*.deb Version); version=v1.${version#0.}; version=${version%-*}
  env GOROOT="$goroot" GOPATH="$work/root/usr/share/gocode" GO111MODULE=off GOFLAGS= GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0 \
    GOCACHE="$work/gocache" nice -n 15 "$goroot/bin/go" build \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(echo "$version" | cut -d. -f2)" \
    -o "$server.new" k8s.io/apiextensions-apiserver
  cp "$work/root/usr/bin/etcd" "$CRD_CACHE/bin/"; mv "$server.new" "$server"; rm -rf "$work"
}

# Whether a process still runs what its pid was written down for: an id may have gone to somebody else's process.
runs() { [ "$(readlink "/proc/$1/exe" 2>/dev/null)" = "$(readlink -f "$2")" ]; } # PID EXECUTABLE

stop() {
  local p pid binary
  for p in server etcd; do
    [ -s "$CRD_RUN/$p.pid" ] || continue
    pid=$(cat "$CRD_RUN/$p.pid") binary=$server; [ $p = server ] || binary=$CRD_CACHE/bin/etcd
    if runs "$pid" "$binary"; then kill "$pid" || true; fi
    for _ in $(seq 50); do runs "$pid" "$binary" || break; sleep 0.1; done
    if runs "$pid" "$binary"; then kill -KILL "$pid" || true; fi
    rm -f "$CRD_RUN/$p.pid"
  done
}

start() {
  [ -x "$server" ] || { echo "run crd-server.sh build first" >&2; exit 1; }
  alive || { echo "run up.sh first" >&2; exit 1; }
  stop; rm -rf "$CRD_RUN"; mkdir -p "$CRD_RUN"; cd "$CRD_RUN"
  setsid "$CRD_CACHE/bin/etcd" --data-dir etcd --listen-client-urls "http://127.0.0.1:$CRD_ETCD" --advertise-client-urls "http://127.0.0.1:$CRD_ETCD" \
    --listen-peer-urls "http://127.0.0.1:$((CRD_ETCD + 1))" --log-level warn </dev/null >etcd.log 2>&1 & echo $! >etcd.pid
  # API priority needs core objects this server has not: off, or it never becomes ready
  setsid "$server" --etcd-servers "http://127.0.0.1:$CRD_ETCD" --bind-address 127.0.0.1 --secure-port "$CRD_PORT" \
    --tls-cert-file "$KT_RUN/pki/apiserver.crt" --tls-private-key-file "$KT_RUN/pki/apiserver.key" --client-ca-file "$KT_RUN/pki/ca.crt" \
    --kubeconfig "$KT_RUN/admin.conf" --authentication-kubeconfig "$KT_RUN/admin.conf" --authorization-kubeconfig "$KT_RUN/admin.conf" \
    --enable-priority-and-fairness=false --disable-admission-plugins ValidatingAdmissionPolicy,MutatingAdmissionPolicy </dev/null >server.log 2>&1 & echo $! >server.pid
  sed "s,https://[^\"]*,https://127.0.0.1:$CRD_PORT," "$KT_RUN/admin.conf" >crd.conf
  for _ in $(seq 300); do
    "$KT_BIN/kubectl" --kubeconfig crd.conf get --raw /readyz >/dev/null 2>&1 && { echo "export KUBECONFIG=$CRD_RUN/crd.conf"; return; }; sleep 0.1
  done
  tail -n 5 server.log >&2; exit 1
}

case ${1-} in build|start|stop) "$1";; *) sed -n '2,9p' "$0" >&2; exit 2;; esac
