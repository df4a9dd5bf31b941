"""Numbers of a range, as types of configuration keys: `utils.config.build` checks them.

Every whole number and every number of a configuration has such a type; another range than those
here is written where it is needed, `Annotated[float, Interval(gt=0, lt=1)]`.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

Count = Annotated[int, Interval(ge=1)]
Whole = Annotated[int, Interval(ge=0)]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]  # what torch's generators take
NotNegative = Annotated[float, Interval(ge=0)]
Positive = Annotated[float, Interval(gt=0)]
Share = Annotated[float, Interval(ge=0, le=1)]
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
