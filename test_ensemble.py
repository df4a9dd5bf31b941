"""Evaluate systems of several members, or label images with one: `python test_ensemble.py
--help`.
"""

import undegrade.utils.quick_start  # noqa: F401  before the rest
from undegrade.evaluation.ensemble_command import main
from undegrade.utils.errors import run_main

if __name__ == "__main__":
    run_main(main)
