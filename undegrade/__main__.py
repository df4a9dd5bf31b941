"""The command `undegrade`: one word for each script of the repository."""

from __future__ import annotations

import importlib
import sys

from undegrade.utils import completion
from undegrade.utils.choices import check_choice
from undegrade.utils.errors import run_main
from undegrade.utils.quick_start import start

COMMANDS = {  # word -> (module that has the `main`, what it does)
    "predict": ("predict_command", "label images: classes and confidences as a CSV and as a page"),
    "evaluate": ("evaluate_command", "accuracies of one system under corruptions, with intervals"),
    "corrupt": ("corrupt_command", "make images worse on purpose, as files"),
    "list": ("list_command", "what there is: adapters, methods, rules, perturbations, predictors, weights, runs"),
    "doctor": ("doctor_command", "what is installed here, and what a warning's mend is"),
    "download": ("utils.download_command", "weights that others published: what there is, and bringing it"),
    "train": ("trainers.entry", "train one network from a YAML"),
    "soup": ("trainers.soups", "average the weights of several runs"),
    "adapt": ("image_adapt.scripts.image_sample", "adapt images, on any number of MPI ranks"),
    "generate": ("image_adapt.scripts.generate", "make labelled images with a diffusion model"),
    "convert": ("image_adapt.scripts.convert_checkpoint", "a diffusion model of another program as a folder of diffusers"),
    "test": ("evaluation.checkpoint_command", "evaluate one checkpoint, or label images with it"),
    "ensemble": ("evaluation.ensemble_command", "evaluate systems of several members, or label images with one"),
    "fit": ("evaluation.fit_command", "fit the weights of a vote, and gates, on validation images"),
    "probe": ("evaluation.linear_probe", "what a frozen network sees of the classes"),
    "table": ("evaluation.approach_table", "approaches, mean over seeds, beside published numbers"),
    "dense_table": ("evaluation.dense_table", "networks for masks or points, mean over seeds"),
    "protocol_table": ("evaluation.protocol_table", "systems under several protocols or batch sizes, mean over seeds"),
    "adapter_table": ("evaluation.adapter_table", "adapters of images by what they gain and cost"),
    "examples": ("evaluation.examples_command", "a figure of test images, degraded and adapted, with what systems say"),
    "site": ("evaluation.site_command", "a leaderboard of all results below folders, as pages"),
    "export": ("export_command", "a classifier or system for the Hub, timm, torch.export or ONNX"),
    "pipeline": ("utils.pipeline", "run the stages of a pipeline YAML"),
}


def main() -> object:
    """`undegrade <word> <arguments>`: what the script of that word returns."""
    words = sys.argv[1:]
    if completion.asked():
        word = completion.command_word()
        if word not in COMMANDS:
            completion.complete_words(COMMANDS)
        words = [word]
        completion.skip_command_word()
    if not words or words[0] in ("-h", "--help"):
        print("usage: undegrade <command> <arguments>; each has a --help of its own")
        width = max(map(len, COMMANDS)) + 2
        print("\n".join(f"  {word.ljust(width)}{text}" for word, (_, text) in COMMANDS.items()))
        return 0
    module, _ = COMMANDS[check_choice(words[0], COMMANDS, "command")]
    start(f"{module.replace('.', '/')}.py", words[1:])
    sys.argv = [f"undegrade {words[0]}", *words[1:]]
    return importlib.import_module(f"undegrade.{module}").main()


def command() -> None:
    """What the installed command `undegrade` calls."""
    run_main(main)


if __name__ == "__main__":
    command()
