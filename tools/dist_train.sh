#!/usr/bin/env bash
# RepFusion's command: bash tools/dist_train.sh <config> <GPUs>, here for every training configuration.
torchrun --nproc_per_node "$2" "$(dirname "$0")/../train.py" -c "$1" "${@:3}"
