#!/bin/sh
# entrypoint.sh train|prepare|analyse|evaluate|export|report|compare [arguments of that launcher]
#
# train starts as many ranks on this node as NPROC says (default: one a GPU, or one a core where there is none), and joins
# NODES - 1 other nodes as number NODE_RANK at MASTER_ADDR:MASTER_PORT. Anything else than a launcher's name is run as it is.
set -eu

case "${1:-}" in
    train)
        shift
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
        # Seconds that ranks have to save a checkpoint when the container is stopped.
        export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}"
        exec torchrun \
            --nnodes "${NODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "${NPROC:-auto}" \
            --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
            /app/launchers/train.py "$@"
        ;;
    prepare | analyse | evaluate | export | report | compare)
        launcher=$1
        shift
        exec python "/app/launchers/${launcher}.py" "$@"
        ;;
    *)
        exec "$@"
        ;;
esac
