#!/bin/sh
# Makes sure of what the tests need of the system: curl, Chromium, Prometheus and its Alertmanager, a registry of images,
# the library that NVIDIA's perf_analyzer is linked to, Debian's torchvision, which is an oracle of the stages, and a
# compiler for one that has no wheel. With arguments it installs these packages instead, where they are missing.
set -eu
. "$(dirname "$0")/registries.sh"

missing=
for package; do
  dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ $# -gt 0 ]; then
  [ -n "$missing" ] || exit 0
else
  command -v curl >/dev/null || missing="$missing curl"
  command -v chromium >/dev/null || missing="$missing chromium"
  command -v prometheus >/dev/null || missing="$missing prometheus"
  command -v amtool >/dev/null || missing="$missing prometheus-alertmanager"
  command -v docker-registry >/dev/null || missing="$missing docker-registry"
  PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q 'libb64\.so\.0d ' || missing="$missing libb64-0d"
  command -v g++ >/dev/null || missing="$missing g++"
  /usr/bin/python3 -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torchvision"))' 2>/dev/null \
    || missing="$missing python3-torchvision"

  # Azure's own emulator of its object store, which npm alone has.
  azurite="$HOME/.cache/segserve/azurite-3.37.0"
  if [ ! -x "$azurite/node_modules/.bin/azurite-blob" ]; then
    command -v npm >/dev/null || missing="$missing npm"
  fi
fi
install_azurite() {
  [ -n "${azurite-}" ] && [ ! -x "$azurite/node_modules/.bin/azurite-blob" ] || return 0
  npm_install "$(dirname "$0")/azurite" "$azurite"
}
[ -n "$missing" ] || { install_azurite; exit; }

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "tests that need these Debian packages are left out:$missing (as root: apt-get install$missing)" >&2
  exit
fi

options="-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
install() {
  # shellcheck disable=SC2086 # lists of words
  DEBIAN_FRONTEND=noninteractive apt-get $options install --yes --no-install-recommends $missing
}
log=$(mktemp)
# Services of packages (Docker's, Prometheus') are not to be started.
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then policy=; else printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"; fi
trap 'rm -f "$log" $policy' EXIT
# The lists of packages may be missing or old.
if ! install >"$log" 2>&1 && ! { apt-get $options update && try_thrice install; } >>"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
install_azurite
