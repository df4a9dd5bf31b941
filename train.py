"""Train one network from a YAML: `python train.py -c configs/ind/Digits/ResNet20_clean.yaml`."""

from trainers.entry import main
from utils.errors import user_errors
from utils.run_log import setup_logging

if __name__ == "__main__":
    setup_logging()
    with user_errors():
        main(None, __doc__)
