#!/bin/sh
# Runs the Dockerfile's `RUN pip` lines in a new virtual environment, on a copy of what is committed, and starts
# what was installed there; docker is not needed. Everything is made in a new folder, which is removed at the end.
#   sh docker/check_install.sh             (about 6 GB of disk)
#   sh docker/check_install.sh python3.12  with another Python
set -eu

python=${1:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m venv "$place/venv"
mkdir "$place/undegrade"
git -C "$root" archive HEAD | tar -x -C "$place/undegrade"
cd "$place/undegrade"
export PATH="$place/venv/bin:$PATH" PIP_NO_CACHE_DIR=1

# the image's folder of requirements is /tmp, here it is the new one
grep '^RUN pip ' docker/Dockerfile | sed "s/^RUN //; s|/tmp/|$place/|g" > "$place/install.sh"
cp docker/requirements.txt "$place/requirements.txt"
cat "$place/install.sh"
sh -eu "$place/install.sh"

cd "$place"
undegrade --help > /dev/null
python undegrade/train.py -c configs/ind/Digits/ResNet20_clean.yaml --print_config > /dev/null
python undegrade/train.py -c configs/ind/Digits/ResNet20_clean.yaml --loop.epochs 1 --data.limit 64 --device cpu
echo "docker/Dockerfile: its install lines work with $(python --version)"
