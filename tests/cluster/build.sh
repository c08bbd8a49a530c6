#!/bin/bash
# Build what a cluster needs into $KT_CACHE, once: Kubernetes 1.20.2 from
# bookworm's source package (which carries its full vendor/) with apt's Go 1.19,
# and the base images. Later calls find everything and take no time.
#   KT_KEEP=1   keep the sources and the compiler's cache, several GB
# One constant of kubelet is patched: it reports finished deletions every second, not every ten (a deleted pod leaves
# the API after about 6 s instead of 13 s).
set -euo pipefail
. "$(dirname "$0")/env.sh"
PACKAGES="containerd runc containernetworking-plugins iptables conntrack etcd-server busybox-static
  debootstrap openssl iproute2 curl golang-go gcc libc6-dev make rsync"
COMPONENTS="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl"
VERSION=1.20.2
TARBALL=kubernetes_1.20.5+really1.20.2.orig.tar.gz
SHA256=b83c0780efb182d928dc63d46488a847f161f04e40a94b96bf5247dd671ecdfc
# the mirror that apt on this machine already uses
POOL=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)}
POOL=${POOL%/}
PATCHES=3  # of the sources, below; binaries of others are built again
COMMIT=faecb196815e248d3ecfb03c680a4507229c2a56

missing=$(for p in $PACKAGES; do dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"; done)
if [ -n "$missing" ]; then
  # packages must not start their services (containerd, etcd): policy-rc.d says no
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
  fi
  apt-get -o Acquire::Retries=3 update -qq
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install -y -qq --no-install-recommends $missing
  if [ -n "$(trap -p EXIT)" ]; then rm /usr/sbin/policy-rc.d; trap - EXIT; fi
fi
mkdir -p "$KT_BIN" "$KT_IMAGES" "$KT_CACHE/gocache"

[ "$(cat "$KT_BIN/patches" 2>/dev/null)" = "$PATCHES" ] || rm -f "$KT_BIN"/kube-apiserver "$KT_BIN"/kubelet
need=$(for c in $COMPONENTS; do [ -x "$KT_BIN/$c" ] || echo "$c"; done)
if [ -n "$need" ]; then
  src=$KT_CACHE/src
  export GOCACHE=${GOCACHE:-$KT_CACHE/gocache} GOPATH=$KT_CACHE/gopath GO111MODULE=off GOPROXY=off GOFLAGS= CGO_ENABLED=0
  if [ ! -e "$src/.generated" ]; then
    if ! echo "$SHA256  $KT_CACHE/$TARBALL" | sha256sum -c --status 2>/dev/null; then
      curl -fsSL --retry 3 -o "$KT_CACHE/$TARBALL" "$POOL/pool/main/k/kubernetes/$TARBALL"
      echo "$SHA256  $KT_CACHE/$TARBALL" | sha256sum -c --quiet
    fi
    rm -rf "$src"; mkdir -p "$src"
    tar xzf "$KT_CACHE/$TARBALL" -C "$src" --strip-components=1
    # keeps the build scripts from asking git, which this tree has not
    printf "%s\n" "KUBE_GIT_COMMIT='$COMMIT'" KUBE_GIT_TREE_STATE=archive "KUBE_GIT_VERSION=v$VERSION" \
      KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 >"$src/.version-defs"
    # The vendored reflect2 1.0.1 dereferences nil under Go >= 1.18: the API server starts, answers GETs, and
    # fails almost every create. Debian's packaged 1.0.2 is a drop-in replacement.
    (cd "$KT_CACHE" && apt-get -o APT::Sandbox::User=root -qq download golang-github-modern-go-reflect2-dev
     dpkg-deb --fsys-tarfile golang-github-modern-go-reflect2-dev_*.deb | tar x -C "$KT_CACHE" ./usr/share/gocode/src/github.com/modern-go/reflect2)
    vendored=$src/vendor/github.com/modern-go/reflect2
    rm -f "$vendored"/*.go "$vendored"/*.s
    cp "$KT_CACHE"/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$vendored/"
    rm -rf "$KT_CACHE/usr" "$KT_CACHE"/golang-github-modern-go-reflect2-dev_*.deb
    KUBE_GIT_VERSION_FILE=$src/.version-defs nice -n 15 make -C "$src" generated_files >"$KT_CACHE/generate.log" 2>&1
    touch "$src/.generated"
  fi
  # The vendored validator takes an empty string for null under Go >= 1.18, in a CRD's default as in an object.
  validator=$src/vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go
  sed -i 's/if data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data)) {/if data == nil {/' "$validator"
  grep -q 'if data == nil {' "$validator"
  sed -i "s/^const syncPeriod = [0-9]* /const syncPeriod = 1 /" "$src/pkg/kubelet/status/status_manager.go"
  mkdir -p "$GOPATH/src/k8s.io"; ln -sfn "$src" "$GOPATH/src/k8s.io/kubernetes"
  stamp=
  for package in component-base/version client-go/pkg/version; do
    at=k8s.io/kubernetes/vendor/k8s.io/$package
    stamp="$stamp -X $at.gitVersion=v$VERSION -X $at.gitMajor=1 -X $at.gitMinor=20 -X $at.gitCommit=$COMMIT -X $at.gitTreeState=archive"
  done
  for c in $need; do
    began=$SECONDS
    (cd "$GOPATH/src/k8s.io/kubernetes" && nice -n 15 go build -tags providerless,dockerless -ldflags "-s -w $stamp" -o "$KT_BIN/.$c" "k8s.io/kubernetes/cmd/$c")
    mv "$KT_BIN/.$c" "$KT_BIN/$c"; echo "built $c in $((SECONDS-began)) s"
  done
  echo "$PATCHES" >"$KT_BIN/patches"
fi

# -- images -------------------------------------------------------------------
[ -x "$KT_BIN/kt-init" ] || gcc -Os -static -s -o "$KT_BIN/kt-init" "$KT_HERE/pause.c"
[ -e "$KT_IMAGES/pause.tar" ] ||
  "$KT_HERE/make_image.py" -t localhost/pause:1 -o "$KT_IMAGES/pause.tar" --copy "$KT_BIN/kt-init:/pause" --entrypoint /pause
if [ ! -e "$KT_IMAGES/busybox.tar" ]; then
  root=$KT_CACHE/busybox-root; rm -rf "$root"; mkdir -p "$root"/{bin,etc,root,tmp,var}; chmod 1777 "$root/tmp"
  cp /bin/busybox "$root/bin/"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
  links=$(/bin/busybox --list-full | grep -v '^bin/busybox$' | sed 's,.*,--symlink=&=/bin/busybox,')
  "$KT_HERE/make_image.py" -t localhost/busybox:1 -o "$KT_IMAGES/busybox.tar" --root "$root" $links --cmd sh
  rm -rf "$root"
fi
if [ ! -e "$KT_IMAGES/python.tar" ]; then
  root=$KT_CACHE/python-root
  [ -e "$root/usr/bin/python3" ] || { rm -rf "$root"
    nice -n 15 debootstrap --variant=minbase --include=python3-minimal,libpython3.11-stdlib bookworm "$root" "$POOL" >"$KT_CACHE/debootstrap.log" 2>&1; }
  # what a container never reads: package lists, caches, documentation, translations
  "$KT_HERE/make_image.py" -t localhost/python:3.11 -o "$KT_IMAGES/python.tar" --root "$root" --cmd python3 \
    --env PYTHONDONTWRITEBYTECODE=1 --env PYTHONUNBUFFERED=1 --env LANG=C.UTF-8 \
    $(for p in dev proc sys var/cache var/log var/lib/apt usr/share/doc usr/share/man usr/share/locale usr/share/info; do echo "--exclude=$p"; done)
fi

# the sources and the compiler's cache are several GB and of no more use
[ -n "${KT_KEEP-}" ] || rm -rf "$KT_CACHE/src" "$KT_CACHE/gocache" "$KT_CACHE/gopath" "$KT_CACHE/python-root"
