#!/usr/bin/env bash
# Builds the CPU image and starts it, without a registry: the base is made of Debian's packages by debootstrap, the image by
# buildah. Needs root, both programs, some 10 GB in $TMPDIR, and a package index that pip reaches: pip's configuration of this
# machine is used inside, with the folders that PIP_FOLDERS names (separated by colons) where it refers to local files.
set -euo pipefail
cd "$(dirname "$0")/.."
for program in buildah debootstrap; do
    command -v "${program}" > /dev/null || { echo "image-check: skipped, because ${program} is not installed"; exit 0; }
done

work=$(mktemp -d)
trap 'buildah rm --all > /dev/null; rm -rf "${work}"' EXIT
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "${work}/store" --runroot "${work}/run" "$@"; }

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "${work}/base" > "${work}/debootstrap.log" \
    || { tail "${work}/debootstrap.log"; exit 1; }
rm -rf "${work}"/base/var/cache/apt/archives/*.deb
tar -C "${work}/base" -cf "${work}/base.tar" .
rm -rf "${work}/base"
container=$(buildah from scratch)
buildah add --quiet "${container}" "${work}/base.tar" / > /dev/null
buildah commit --quiet --rm "${container}" localhost/base > /dev/null
rm "${work}/base.tar"

# What pip is told on this machine, as a file for the pip inside.
{ echo '[global]'; .venv/bin/python -m pip config list | sed -nE "s/^[^=]*\.([a-z-]+)='(.*)'$/\1 = \2/p" | tac | sort -u -t= -k1,1; } \
    > "${work}/pip.conf"
mounts=(--volume "${work}/pip.conf:/etc/pip.conf:ro" --volume /etc/ssl/certs:/etc/ssl/certs:ro)
IFS=: read -ra folders <<< "${PIP_FOLDERS:-}"
for folder in "${folders[@]}"; do
    mounts+=(--volume "${folder}:${folder}:ro")
done
buildah bud --quiet --pull-never --network host "${mounts[@]}" --build-arg BASE=localhost/base \
    --file docker/Dockerfile --tag gdps_ds . > /dev/null

container=$(buildah from --pull-never gdps_ds)
run() { buildah run "${container}" -- "$@"; }
echo "size of the image: $(buildah images --format '{{.Size}}' gdps_ds)"
[[ $(run id -u) != 0 ]] || { echo "image-check: the image runs as root"; exit 1; }
run /usr/local/bin/entrypoint.sh prepare --corpus demo --root /tmp/demo > /dev/null
run /usr/local/bin/entrypoint.sh python launchers/train.py --help > /dev/null
echo "image-check: passed"
