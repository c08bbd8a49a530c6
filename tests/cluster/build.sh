#!/bin/bash
# Make what the cluster is made of, once, and print the image of its nodes. `build.sh programs` makes the programs alone.
#
# Where images can be pulled, the nodes' is kind's own, and the one that the tests' images begin with is Python's.
# Elsewhere both are made of Debian's packages (root), and the nodes' also of Go modules: ten minutes of two cores.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
mkdir -p "$BIN" "$BUILT"
digest() { cat "$@" | sha256sum | cut -c1-16; }

programs() { # NAME PACKAGE...: build Go programs; NAME says which they are
  local at=k8s.io/component-base/version minor=${KUBERNETES#*.} digest
  digest=$(digest "$GO_MOD" "${GO_MOD%.mod}.sum")
  [ "$(cat "$BUILT/.$1" 2>/dev/null)" != "$digest" ] || return 0
  # kubeadm asks for images of the version that it is stamped with.
  (cd "$HERE" && GOFLAGS="-mod=readonly -modfile=${GO_MOD##*/}" CGO_ENABLED=0 nice go build -trimpath -o "$BUILT/" -ldflags "-s -w -X $at.gitVersion=$KUBERNETES \
    -X $at.gitMajor=1 -X $at.gitMinor=${minor%.*} -X $at.gitTreeState=archive" "${@:2}")
  [ "$1" != all ] || ln -f "$BUILT/server" "$BUILT/etcd"  # named by the last word of its package
  ln -sf "$BUILT/kind" "$BUILT/kubectl" "$BIN/"
  echo "$digest" >"$BUILT/.$1"
}

if [ "${1-}" = programs ]; then programs all tool; exit; fi
"$HERE/docker.sh"
. "$HERE/settings.sh"
PULLED=docker.io/kindest/node:$KUBERNETES PYTHON=localhost/segserve-python:test
ROUTER=localhost/segserve-kube-router:test ROUTER_MODULE=github.com/cloudnativelabs/kube-router/v2@v2.1.0
METRICS=localhost/segserve-metrics-server:test METRICS_MODULE=sigs.k8s.io/metrics-server@v0.9.0
OURS=localhost/segserve-node:$(digest "$GO_MOD" "${GO_MOD%.mod}.sum" "$HERE/build.sh")
has() { docker image inspect "$1" >/dev/null 2>&1; }
if ! has "$OURS" && { has "$PULLED" || docker pull --quiet "$PULLED" >/dev/null 2>&1; }; then
  programs few sigs.k8s.io/kind k8s.io/kubernetes/cmd/kubectl
  official=$(sed -n 's/^ARG BASE=//p' "$HERE/../../images/operator.Dockerfile")
  pulled() { has "$1" || { docker pull --quiet "$2" >/dev/null; docker tag "$2" "$1"; }; }
  pulled "$PYTHON" "$official"
  pulled "$ROUTER" "docker.io/cloudnativelabs/kube-router:${ROUTER_MODULE#*@}"
  pulled "$METRICS" "registry.k8s.io/metrics-server/metrics-server:${METRICS_MODULE#*@}"
  echo "$PULLED"; exit
fi
programs all tool

# -- Debian's part -------------------------------------------------------------
sh "$HERE/../system.sh" debootstrap gcc libc6-dev
WORK=$CACHE/work
debian() { # NAME PACKAGES: NAME.tar, a root folder of Debian with these packages
  [ ! -e "$CACHE/$1.tar" ] || return 0
  local mirror; mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
  rm -rf "$WORK"; mkdir -p "$WORK"
  nice debootstrap --variant=minbase --include="$2" bookworm "$WORK" ${mirror:+"$mirror"} >"$CACHE/debootstrap.log" 2>&1
  # A registry of packages may be reached through a mirror with an authority of its own.
  cp /etc/ssl/certs/ca-certificates.crt "$WORK/etc/ssl/certs/"
  tar c -C "$WORK" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./var/cache/*' --exclude='./var/log/*' \
    --exclude='./var/lib/apt/*' --exclude='./usr/share/'{doc,man,locale,info}'/*' . >"$CACHE/$1.tar.new"
  mv "$CACHE/$1.tar.new" "$CACHE/$1.tar"
}
if ! has "$PYTHON"; then
  debian python python3,python3-pip,python3-venv,libpython3.11,ca-certificates
  docker import "$CACHE/python.tar" "$PYTHON" >/dev/null
fi
if has "$OURS"; then echo "$OURS"; exit; fi
# bookworm's systemd runs on a machine with the cgroup v1 hierarchies; later ones refuse.
debian node "systemd,systemd-sysv,dbus,conntrack,iptables,nftables,ipset,iproute2,ethtool,mount,kmod,libseccomp2,jq,procps,e2fsprogs,ca-certificates,curl,runc,findutils,hostname"

# -- a node's root folder: Debian, kind's own files, the programs -----------------
ROOT=$WORK/root
rm -rf "$WORK"; mkdir -p "$ROOT"; tar x -C "$ROOT" <"$CACHE/node.tar"
files=$(cd "$HERE" && GOFLAGS="-mod=readonly -modfile=${GO_MOD##*/}" go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files
cp -r --no-preserve=mode,ownership "$files"/{etc,kind,usr} "$ROOT"; chmod 755 "$ROOT"/usr/local/bin/* "$ROOT"/kind/bin/*
chroot "$ROOT" bash -ec '
  # What kind does in images/base/Dockerfile: a container has no devices, file systems and consoles to look after.
  find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
  rm -f /lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* /etc/systemd/system/*.wants/* /lib/systemd/system/sockets.target.wants/*{udev,initctl}*
  echo ReadKMsg=no >>/etc/systemd/journald.conf
  ln -sf /usr/lib/systemd/systemd /sbin/init
  systemctl -q enable kubelet.service containerd.service undo-mount-hacks.service; systemctl -q mask systemd-binfmt.service
  mkdir -p /etc/kubernetes/manifests /opt/cni/bin /etc/cni/net.d'
cp "$BUILT"/{containerd,containerd-shim-runc-v2,ctr} "$ROOT/usr/local/bin/"; cp "$BUILT"/{kubeadm,kubelet,kubectl} "$ROOT/usr/bin/"
cp "$BUILT"/{host-local,loopback,portmap,ptp} "$ROOT/opt/cni/bin/"
# CAP_SYS_RESOURCE may be missing: no container gets it, or an oom score below its parent's.
chroot "$ROOT" ctr oci spec | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)
  | (.process.capabilities[]?) -= ["CAP_SYS_RESOURCE"]' >"$WORK/cri-base.json"; mv "$WORK/cri-base.json" "$ROOT/etc/containerd/"
sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$ROOT/etc/containerd/config.toml"
echo "$KUBERNETES" >"$ROOT/kind/version"

# -- the images of the control plane: a static program each -------------------------
names=$("$BUILT/kubeadm" config images list --kubernetes-version "$KUBERNETES" 2>/dev/null)
name() { echo "$names" | grep "/$1:"; }
image() { # REFERENCE ROOT ENTRYPOINT
  mkdir -p "$2/tmp" "$2/etc/ssl/certs"; chmod 1777 "$2/tmp"
  tar c -C "$2" . | docker import -c 'ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin' -c "ENTRYPOINT [\"$3\"]" - "$1" >/dev/null
}
for each in kube-apiserver kube-controller-manager kube-scheduler etcd coredns; do
  mkdir -p "$WORK/$each/usr/local/bin"; cp "$BUILT/$each" "$WORK/$each/usr/local/bin/"; image "$(name "$each")" "$WORK/$each" "/usr/local/bin/$each"
done
mkdir "$WORK/pause"
printf '#include <signal.h>\n#include <unistd.h>\nint main(void) { signal(SIGCHLD, SIG_IGN); for (;;) pause(); }\n' |
  gcc -Os -static -s -x c -o "$WORK/pause/pause" -
image "$(name pause)" "$WORK/pause" /pause
# kube-proxy calls iptables and others: they come with the libraries of their own and of iptables' extensions.
proxy=$WORK/kube-proxy; mkdir -p "$proxy"/{usr/local/bin,usr/sbin,usr/lib/x86_64-linux-gnu,bin,sbin,run}; cp "$BUILT/kube-proxy" "$proxy/usr/local/bin/"
for each in usr/sbin/{xtables-legacy-multi,xtables-nft-multi,conntrack,nft,ipset} bin/{dash,kmod}; do cp "$ROOT/$each" "$proxy/$each"; done
cp -r "$ROOT/usr/lib/x86_64-linux-gnu/xtables" "$proxy/usr/lib/x86_64-linux-gnu/"
chroot "$ROOT" sh -c 'ldd /usr/sbin/xtables-*-multi /usr/sbin/conntrack /usr/sbin/nft /usr/sbin/ipset /bin/dash /bin/kmod /usr/lib/x86_64-linux-gnu/xtables/*.so' |
  grep -oE '/[^ ]+\.so[^ :]*' | grep -v xtables/ | sort -u | while read -r each; do mkdir -p "$proxy/${each%/*}"; cp -nL "$ROOT/$each" "$proxy/$each"; done
ln -s dash "$proxy/bin/sh"; ln -s ../bin/kmod "$proxy/sbin/modprobe"
for each in ip{,6}tables{,-save,-restore}; do ln -s xtables-nft-multi "$proxy/usr/sbin/$each"; done
image "$(name kube-proxy)" "$proxy" /usr/local/bin/kube-proxy
own() { # MODULE PROGRAM: build a program in its own module, whose `replace` lines count only there
  local module; module=$(cd "$WORK" && GOFLAGS=-mod=mod go mod download -json "$1" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  (cd "$module" && CGO_ENABLED=0 nice go build -trimpath -ldflags '-s -w' -o "$BUILT/" "./cmd/$2")
}
# kube-router calls the same.
own "$ROUTER_MODULE" kube-router
rm "$proxy/usr/local/bin/kube-proxy"; cp "$BUILT/kube-router" "$proxy/usr/local/bin/"
image "$ROUTER" "$proxy" /usr/local/bin/kube-router
own "$METRICS_MODULE" metrics-server
mkdir -p "$WORK/metrics"; cp "$BUILT/metrics-server" "$WORK/metrics/"; image "$METRICS" "$WORK/metrics" /metrics-server

# -- the nodes' image: the root folder, and those images in its containerd ------------
sandbox=$(sed -n 's/.*sandbox_image = "\(.*\)"/\1/p' "$ROOT/etc/containerd/config.toml")
docker tag "$(name pause)" "$sandbox"
tar c -C "$ROOT" . | docker import -c 'ENV container=docker' - localhost/segserve-node:root >/dev/null
docker rm -f segserve-node-build >/dev/null 2>&1 || true
docker run -d --name segserve-node-build --privileged --entrypoint sleep localhost/segserve-node:root infinity >/dev/null
docker exec segserve-node-build bash -c 'nohup containerd >/dev/null 2>&1 & for _ in $(seq 100); do [ -S /run/containerd/containerd.sock ] && exit; sleep 0.1; done; exit 1'
for each in $names "$sandbox"; do
  docker save "$each" | docker exec -i segserve-node-build ctr -n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests - >/dev/null
done
# Nobody in this container waits for a process that has ended: it stays as a zombie.
docker exec segserve-node-build sh -c 'pkill containerd; while ps -C containerd -o stat= | grep -q "^[^Z]"; do sleep 0.1; done'
docker commit segserve-node-build localhost/segserve-node:loaded >/dev/null
docker rm -f segserve-node-build >/dev/null
# Neither import nor commit takes a STOPSIGNAL.
printf 'FROM localhost/segserve-node:loaded\nSTOPSIGNAL SIGRTMIN+3\nENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]\n' |
  docker build -q -t "$OURS" - >/dev/null 2>"$CACHE/docker-build.log"
# By these names others know the upstream images; two of them may be the same.
docker rmi $(printf '%s\n' $names "$sandbox" localhost/segserve-node:{root,loaded} | sort -u) >/dev/null
rm -rf "$WORK"
echo "$OURS"
