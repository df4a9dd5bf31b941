"""Clean a video with any adapter; a latent editor looks back at the first frame, so that what it
paints stays.

python image_adapt/scripts/video_edit.py in.mp4 --out out.mp4 --adapter decorruptor --model_path editor/photos/cm
python image_adapt/scripts/video_edit.py in.mp4 --out out.mp4 -c configs/adapt/Digits/dda.yaml --compare compare.mp4

Flags of adapters as of image_sample.py. Frames keep their number, size and rate. Two numbers are
printed: the PSNR between neighbouring frames of input and output, and with --classifier the share
of neighbouring frames whose label differs.
"""

from __future__ import annotations

import undegrade.utils.quick_start  # noqa: F401  before the rest

# isort: split
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from undegrade.image_adapt.adapters import ADAPTERS
from undegrade.image_adapt.config import adapt_schema
from undegrade.image_adapt.effect import check_keys_of_video
from undegrade.image_adapt.scripts.adapter_flags import add_adapter_flags, check_model, chosen_adapter, open_adapter
from undegrade.image_adapt.scripts.ranks import given_tree
from undegrade.image_adapt.video import CHUNK, Clip, edit_clip, label_flips, neighbour_psnr, read_clip, write_clip
from undegrade.models.classification.classifier import Classifier
from undegrade.models.classification.loading import load_classifier
from undegrade.utils.command_line import ScriptParser, typed
from undegrade.utils.config import build, dotted_keys, merge
from undegrade.utils.data.pixels import to_unit
from undegrade.utils.device import choose_device
from undegrade.utils.errors import run_main
from undegrade.utils.progress import progress_bar
from undegrade.utils.ranges import Count, Seed
from undegrade.utils.run_log import setup_logging

log = logging.getLogger("video_edit")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    setup_logging()
    schema = adapt_schema()
    p = ScriptParser(__doc__, dotted_keys(schema))
    p.add_argument("video", type=Path, help="file to be cleaned")
    p.add_argument("--out", type=Path, required=True, help="file to write, H.264")
    p.add_argument("--compare", type=Path, help="also write input and output side by side")
    p.add_argument("-c", "--config", nargs="+", help="YAML file of an adaptation; its inputs and outputs are not read")
    p.add_argument("--adapter", help=", ".join(ADAPTERS))
    p.add_argument("--model_path", help="model of the adapter")
    p.add_argument("--runs", help="root of the runs, for models by name")
    p.add_argument("--seed", type=typed(Seed), default=0, help="of the noise, which all frames share")
    p.add_argument("--frames", type=typed(Count), help="only the first so many")
    p.add_argument("--chunk", type=typed(Count), default=CHUNK, help="frames that are adapted together")
    p.add_argument("--no_cross_frame", action="store_true", help="a latent editor, too, does every frame by itself")
    p.add_argument("--classifier", help="run, run folder or checkpoint of a classifier whose labels are compared")
    p.add_argument("--classifier_size", type=typed(Count), help="side in pixels to which frames are brought for it (default: 224)")
    p.add_argument("-d", "--device", help="cpu, cuda, cuda:N")
    flags = add_adapter_flags(p, schema)
    args, overrides = p.parse(argv)
    tree = given_tree(args, overrides)
    adapter, options, model_flags = chosen_adapter(args, overrides, tree, flags, schema)
    given = {"adapter": adapter, "model": args.model_path, "runs": args.runs}
    tree = merge(tree, {adapter: options, "save_dir": "", **{key: value for key, value in given.items() if value is not None}})
    check_model(tree, adapter)
    config = build(schema, tree)
    own = {flag: getattr(args, flag) for flag in ("no_cross_frame", "classifier_size") if getattr(args, flag)}
    check_keys_of_video(config, merge(overrides, {adapter: options} | own), args.classifier is not None)
    clip = read_clip(args.video, args.frames)
    height, width = clip.frames.shape[-2:]
    log.info("%s: %d frames of %d x %d px, %s a second", args.video, len(clip.frames), width, height, clip.rate)
    classifier = load_classifier(args.classifier, config.runs) if args.classifier is not None else None
    opened = open_adapter(config, model_flags, choose_device(args.device))
    parts = []
    bar = progress_bar(total=len(clip.frames), unit="frame")
    for part in edit_clip(opened, clip, args.seed, args.chunk, not args.no_cross_frame):
        parts.append(part)
        bar.update(len(part))
    bar.close()
    edited = Clip(torch.cat(parts), clip.rate)
    write_clip(args.out, edited)
    if args.compare is not None:
        write_clip(args.compare, Clip(torch.cat([clip.frames, edited.frames], -1), clip.rate))
    print(f"neighbouring frames, PSNR: {neighbour_psnr(clip.frames):.2f} dB before, {neighbour_psnr(edited.frames):.2f} dB after")
    if classifier is not None:
        before, after = (label_flips(_labels(classifier, c.frames, args.classifier_size or 224)) for c in (clip, edited))
        print(f"neighbouring frames, another label: {100 * before:.1f} % before, {100 * after:.1f} % after")


@torch.no_grad()
def _labels(classifier: Classifier, frames: Tensor, side: int) -> Tensor:
    scaled = (F.interpolate(to_unit(part), (side, side), mode="bilinear", antialias=True) for part in frames.split(16))
    return torch.cat([classifier(part).argmax(1) for part in scaled])


if __name__ == "__main__":
    run_main(main)
