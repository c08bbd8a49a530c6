#!/bin/bash
# Build and check everything that a release consists of, in out/release. `make release` calls it, and these variables are read:
#
#   REGISTRY       where the images will be, such as ghcr.io/example: in their names, and in the chart's defaults
#   PUSH=1         push the images and the chart there, once everything has been built and checked
#   TWINE_REPOSITORY_URL   a package index, which then gets the wheel and the sdist too
#   OPERATOR_BASE, SERVER_BASE   base images, pinned by digest; without them those that the Dockerfiles name
#   PYTHONS        interpreters into which the wheel is installed; those that are missing are named
#   ARCHIVES=0     do not save the images as archives: the server's is larger than some disks
#   BUILD_OPTIONS, HELM_OPTIONS   for `docker build` and for `helm push`
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=${1-} REGISTRY=${REGISTRY:-localhost} OUT=$PWD/out/release
UV=${UV:-uv} PYTHONS=${PYTHONS:-python3.11 python3.12 python3.13 python3.14} CHART=charts/segserve/Chart.yaml
# Debian's Docker has BuildKit, and does not use it unless asked to.
export DOCKER_BUILDKIT=1 UV_PYTHON_DOWNLOADS=never

refuse() { echo "no release${VERSION:+ of $VERSION}: $*" >&2; exit 1; }
same() { [ "$2" = "$VERSION" ] || refuse "$1 is ${2:-missing}; set it to $VERSION, or name another VERSION"; }

[ -n "$VERSION" ] || refuse "VERSION is missing; \`make release VERSION=0.1.0\` names it"
same "the version in pyproject.toml" "$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"
same "the version in $CHART" "$(sed -n 's/^version: *//p' $CHART)"
same "the appVersion in $CHART" "$(sed -n 's/^appVersion: *//p' $CHART)"
for image in operator server; do
  same "the tag of segserve-$image in $CHART" "$(sed -n "s|^ *image: localhost/segserve-$image:||p" $CHART)"
done
# A date is written once it is known: nothing is released before.
grep -qE "^## \[${VERSION//./\\.}\] - [0-9]{4}-[0-9]{2}-[0-9]{2}\$" CHANGELOG.md ||
  refuse "CHANGELOG.md has no line '## [$VERSION] - YYYY-MM-DD'; write it below '## [Unreleased]', with the day of the release"
[ -z "$(git status --porcelain)" ] || refuse "the checkout has changes that no commit has; commit or remove them"

rm -rf "$OUT"
mkdir -p "$OUT"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
"$UV" venv --quiet --python "${PYTHON:-python3.11}" "$work/tools"
"$UV" pip install --quiet --python "$work/tools/bin/python" --require-hashes --requirement images/release.lock
tool() { "$work/tools/bin/$1" "${@:2}"; }
# The packages of an environment, as CycloneDX.
sbom() { tool cyclonedx-py environment --output-reproducible --of JSON -o "$OUT/$1-$VERSION.cdx.json" "${@:2}"; }

echo "== wheel and sdist"
tool python -m build --no-isolation --outdir "$OUT" . >"$work/log" || { cat "$work/log" >&2; exit 1; }
tool python -m build --no-isolation --wheel --outdir "$work" . >/dev/null
wheel=$(basename "$OUT"/*.whl)
cmp "$OUT/$wheel" "$work/$wheel" || refuse "the sdist and the checkout make different wheels; see what the sdist lacks"
tool twine check --strict "$OUT"/*

installed='' missing=''
for name in $PYTHONS; do
  # A shim of pyenv is there for versions that do not run.
  python=$("$name" -c 'import sys; print(sys.executable)' 2>/dev/null) || { missing+=" $name"; continue; }
  "$UV" venv --quiet --python "$python" "$work/$name"
  "$UV" pip install --quiet --python "$work/$name/bin/python" "$OUT/$wheel"
  same "what \`segserve --version\` says on $name" "$("$work/$name/bin/segserve" --version | awk '{ print $2 }')"
  installed+=" $name"
done
[ -n "$installed" ] || refuse "none of$missing runs; install one of them, or name others in PYTHONS"
echo "== the wheel runs on:$installed${missing:+; not tried, as they are not there:$missing}"
read -r first _ <<<"$installed"
sbom segserve --pyproject pyproject.toml "$work/$first"

for image in operator server; do
  name=$REGISTRY/segserve-$image:$VERSION base=${image^^}_BASE
  echo "== $name"
  # shellcheck disable=SC2086 # lists of words
  docker build --quiet ${BUILD_OPTIONS-} ${!base:+--build-arg BASE=${!base}} -f images/$image.Dockerfile -t "$name" \
    --label org.opencontainers.image.version="$VERSION" --label org.opencontainers.image.revision="$(git rev-parse HEAD)" .
  "$UV" venv --quiet --python "${PYTHON:-python3.11}" "$work/$image"
  # shellcheck disable=SC2016 # for the shell in there
  docker run --rm --network none --entrypoint sh "$name" -c 'cd /opt/segserve; tar -c $(find . -name "*.dist-info")' |
    tar -x --transform 's|.*/\([^/]*\.dist-info\)|\1|' -C "$work/$image"/lib/python*/site-packages
  sbom segserve-$image "$work/$image"
  [ "${ARCHIVES:-1}" = 0 ] || docker save -o "$OUT/segserve-$image-$VERSION.tar" "$name"
done

echo "== chart"
cp -r charts/segserve "$work/segserve"
grep -rlZ localhost/segserve- "$work/segserve" | xargs -0 sed -i "s|localhost/segserve-|$REGISTRY/segserve-|g"
tool helm package --destination "$OUT" "$work/segserve" >/dev/null
awk -v of="[$VERSION]" '/^## / { found = $2 == of; next } found' CHANGELOG.md >"$OUT/NOTES.md"
(cd "$OUT" && sha256sum -- * >"$work/sums" && mv "$work/sums" SHA256SUMS)
[ -n "${PUSH-}" ] || { echo "== $OUT has the release; PUSH=1 publishes it to REGISTRY=$REGISTRY"; exit; }

echo "== push to $REGISTRY"
for image in operator server; do
  docker push --quiet "$REGISTRY/segserve-$image:$VERSION"
  docker inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$REGISTRY/segserve-$image:$VERSION" |
    grep "^$REGISTRY/segserve-$image@" >>"$OUT/PUSHED"
done
# shellcheck disable=SC2086 # a list of words
tool helm push ${HELM_OPTIONS-} "$OUT/segserve-$VERSION.tgz" "oci://$REGISTRY" 2>&1 | tee "$work/log"
sed -n "s|^Digest: |$REGISTRY/segserve@|p" "$work/log" >>"$OUT/PUSHED"
[ -z "${TWINE_REPOSITORY_URL-}" ] || tool twine upload --non-interactive "$OUT"/*.whl "$OUT"/*.tar.gz
