"""Evaluate one checkpoint, or label images with it: `python test.py --help`."""

import undegrade.utils.quick_start  # noqa: F401  before the rest
from undegrade.evaluation.checkpoint_command import main
from undegrade.utils.errors import run_main

if __name__ == "__main__":
    run_main(main)
