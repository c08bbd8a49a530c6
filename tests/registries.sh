# Functions that install from registries; read by other scripts with `.`.

# Registries refuse a request now and then.
try_thrice() {
  "$@" || { sleep 10; "$@"; } || { sleep 60; "$@"; }
}

# npm_install SOURCE FOLDER [OPTION...] installs in FOLDER what package-lock.json of SOURCE names.
npm_install() {
  mkdir -p "$2"
  cp "$1"/package.json "$1"/package-lock.json "$2"
  npm_folder=$2
  shift 2
  # Node brings certificate authorities of its own; the machine's may know a mirror's too.
  NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}" \
    try_thrice npm ci --loglevel=error --no-audit --no-fund --prefix "$npm_folder" "$@" >/dev/null
}
