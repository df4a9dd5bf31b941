"""Average the weights of several runs: `python utils/model_soups.py --help`."""

import undegrade.utils.quick_start  # noqa: F401  before the rest
from undegrade.trainers.soups import main
from undegrade.utils.errors import run_main

if __name__ == "__main__":
    run_main(main)
