"""Classify images whose degradation is unknown: blurred, noisy, compressed, or taken in bad
weather.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "utils" / "config.py").is_file():
    __path__.append(str(_checkout))  # in a checkout the packages lie beside this folder, installed they lie in it
