#!/usr/bin/env bash
# Builds the CPU image and trains with it on the two nodes of compose.yaml, without a registry: the base is made of Debian's
# packages by debootstrap. The nodes are stopped in the middle, and go on. Needs root, the programs below and catatonit, some
# 15 GB in $TMPDIR, and a package index that pip reaches: pip's configuration of this machine is used inside, with the folders
# that PIP_FOLDERS names (separated by colons) where it refers to local files. CONTAINERS_CONF and STORAGE_DRIVER are podman's.
set -euo pipefail
cd "$(dirname "$0")/.."
for program in podman podman-compose debootstrap; do
    command -v "${program}" > /dev/null || { echo "image-check: skipped, because ${program} is not installed"; exit 0; }
done

work=$(mktemp -d)
podman() { command podman --root "${work}/store" --runroot "${work}/run" --tmpdir "${work}/tmp" "$@"; }
clean() {
    podman rm --all --force
    podman network rm --force docker_cluster
    rm -rf "${work}"
} > /dev/null 2>&1
trap 'clean || true' EXIT
failed() { echo "image-check: $*"; exit 1; }

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "${work}/base" > "${work}/debootstrap.log" \
    || { tail "${work}/debootstrap.log"; exit 1; }
rm -rf "${work}"/base/var/cache/apt/archives/*.deb
tar -C "${work}/base" -c . | podman import --quiet - localhost/base > /dev/null
rm -rf "${work}/base"

# What pip is told on this machine, as a file for the pip inside.
{ echo '[global]'; .venv/bin/python -m pip config list | sed -nE "s/^[^=]*\.([a-z-]+)='(.*)'$/\1 = \2/p" | tac | sort -u -t= -k1,1; } \
    > "${work}/pip.conf"
mounts=(--volume "${work}/pip.conf:/etc/pip.conf:ro" --volume /etc/ssl/certs:/etc/ssl/certs:ro)
IFS=: read -ra folders <<< "${PIP_FOLDERS:-}"
for folder in "${folders[@]}"; do
    mounts+=(--volume "${folder}:${folder}:ro")
done
podman build --quiet --pull=never --network host "${mounts[@]}" --build-arg BASE=localhost/base \
    --file docker/Dockerfile --tag gdps_ds . > /dev/null
echo "size of the image: $(podman images --format '{{.Size}}' localhost/gdps_ds)"
[[ $(podman run --rm gdps_ds id -u) != 0 ]] || failed "the image runs as root"
[[ $(podman run --rm gdps_ds) == "usage: train.py"* ]] || failed "its default command shows no help"

# The demo in little, in the folder that compose.yaml calls DATA.
mkdir -m 777 "${work}/data"
podman run --rm --volume "${work}/data:/data" gdps_ds prepare --corpus demo --root /data/demo --workers 2 > /dev/null
sed 's#build/demo-corpus#/data/demo#' ds_configs/experiments/demo.yaml > "${work}/data/demo.yaml"
few='train.unify.updates=12 train.specialise.updates=4 train.log_every=2 train.checkpoint_every=100 mine.updates=4 track.report=false'
podman run --rm --volume "${work}/data:/data" gdps_ds python -c "
from gdps_ds.config_file import dump_config, load_config
config = load_config('/data/demo.yaml', ['run.dir=/runs/first', *'${few}'.split()])
open('/data/experiment.yaml', 'w').write(dump_config(config))"

printf '#!/bin/sh\nexec podman --root %s/store --runroot %s/run --tmpdir %s/tmp "$@"\n' "${work}" "${work}" "${work}" \
    > "${work}/podman"
chmod +x "${work}/podman"
export DATA=${work}/data NPROC=1
compose() { podman-compose --podman-path "${work}/podman" --file docker/compose.yaml "$@"; }
up() { compose up --no-build --detach > "${work}/compose.log" 2>&1 || { cat "${work}/compose.log"; failed "compose.yaml"; }; }
logs() { for node in "${nodes[@]}"; do podman logs "${node}" 2>&1; done; }

up
mapfile -t nodes < <(podman ps --quiet)
[[ ${#nodes[@]} == 2 ]] || failed "compose.yaml started ${#nodes[@]} nodes"
folder=$(podman volume inspect docker_runs --format '{{.Mountpoint}}')/first
for _ in {1..600}; do
    grep -sq '"update": 6,' "${folder}/metrics.jsonl" && break
    sleep 1
done
podman stop --time 300 "${nodes[@]}" > /dev/null
logs | grep "stopped by a signal" || { logs; failed "the nodes have saved nothing"; }
up
[[ $(podman wait "${nodes[@]}" | sort -u) == 0 ]] || { logs; failed "the nodes have not gone on to the end"; }
logs | grep "going on after update"
grep "BLEU" "${folder}/summary.txt"
echo "image-check: passed"
