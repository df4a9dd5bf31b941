"""Evaluate one checkpoint, or label images with it: `python test.py --help`."""

from undegrade.evaluation.checkpoint_command import main
from undegrade.utils.errors import run_main

if __name__ == "__main__":
    run_main(main)
