"""What is done to images: degradations, sequences, corruptions, PixMix, the watermark, nothing.

Importing the package imports all modules in it, and so registers their rows (perturbation.py).
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
