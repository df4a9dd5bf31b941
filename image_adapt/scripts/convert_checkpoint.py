"""Convert a diffusion checkpoint of guided-diffusion or improved-diffusion to a folder of
diffusers, once.

The folder says what network it holds, so that --model_path takes it without further flags:
python image_adapt/scripts/convert_checkpoint.py --model_path <checkpoint.pt> --out <folder> --image_size 32 --num_res_blocks 3 ...
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import logging
from collections.abc import Sequence

from undegrade.models.diffusion.loading import diffusers_folder, open_denoiser, save_folder
from undegrade.models.diffusion.openai import halve_convolutions
from undegrade.models.diffusion.openai_flags import MODEL_FLAGS, parse_flag
from undegrade.utils.command_line import ScriptParser
from undegrade.utils.errors import run_main
from undegrade.utils.runs import resolve_checkpoint

log = logging.getLogger("convert_checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    p = ScriptParser(__doc__)
    p.add_argument("--model_path", required=True, help="state dict of OpenAI's code, a folder of diffusers, or a run")
    p.add_argument("--out", required=True, help="folder to write; must not exist")
    p.add_argument("--use_fp16", default="False", metavar="VALUE", help="round the convolutions to half precision")
    for flag in MODEL_FLAGS:
        p.add_argument(f"--{flag}", metavar="VALUE", help="of the network, as in the command that trained it")
    args, _ = p.parse(argv)
    flags = {flag: getattr(args, flag) for flag in MODEL_FLAGS if getattr(args, flag) is not None}
    half = parse_flag("use_fp16", args.use_fp16, bool)
    denoiser = open_denoiser(diffusers_folder(args.model_path) or resolve_checkpoint(args.model_path), flags)
    if half:
        halve_convolutions(denoiser.unet)
    save_folder(denoiser, args.out)
    log.info("%d parameters -> %s", sum(parameter.numel() for parameter in denoiser.parameters()), args.out)
    return 0


if __name__ == "__main__":
    run_main(main)
