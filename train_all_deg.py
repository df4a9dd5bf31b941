"""Train one network on batches that carry several degradations. The same program as train.py."""

import undegrade.utils.quick_start  # noqa: F401  before the rest
from undegrade.trainers.entry import main
from undegrade.utils.errors import run_main

if __name__ == "__main__":
    run_main(main)
