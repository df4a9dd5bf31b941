"""Train one network from a YAML: `python train.py --help`."""

from undegrade.trainers.entry import main
from undegrade.utils.errors import run_main

if __name__ == "__main__":
    run_main(main)
