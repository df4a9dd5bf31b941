"""Train one network on batches that carry all degradations: `python train_all_deg.py -c configs/deg_all/... --dt combined_deg`.

The same program as train.py; a config of this family lists several degradations.
"""

from trainers.entry import main
from utils.errors import user_errors
from utils.run_log import setup_logging

if __name__ == "__main__":
    setup_logging()
    with user_errors():
        main(None, __doc__)
