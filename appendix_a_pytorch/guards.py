"""What appendix A refuses, and with which messages."""

import math
import numbers
from collections.abc import Sized


def check_number(data: object) -> None:
    """Refuse anything but a plain number."""
    if not isinstance(data, numbers.Real):
        raise TypeError(
            f"a Value holds one number, not {data!r} of type {type(data).__name__}; "
            "make one Value for each number"
        )


def check_power(base: float, exponent: object) -> None:
    """Refuse an exponent that is not a plain number, and powers without a slope."""
    if not isinstance(exponent, numbers.Real):
        raise TypeError(
            f"the exponent must be a plain number, not a {type(exponent).__name__}; "
            "write a ** b of two Values as (b * a.log()).exp()"
        )
    if base < 0 and exponent != int(exponent):
        raise ValueError(
            f"{base} ** {exponent} is not a real number; a base below 0 needs a whole "
            "exponent"
        )
    if base == 0 and exponent < 1 and exponent != 0:
        raise ValueError(
            f"0 ** {exponent} has no slope, because it would be infinite; keep the "
            "base away from 0"
        )


def check_logarithm(data: float) -> None:
    """Refuse a number that has no logarithm."""
    if not 0 < data < math.inf:
        raise ValueError(
            f"log of {data} is not finite; give it a number above 0, such as a "
            "probability plus 1e-9"
        )


def check_points(n: object) -> None:
    """Refuse a number of points that would leave a class empty."""
    if not isinstance(n, int) or n < 2:
        raise ValueError(
            f"n = {n!r} points are not enough for two classes; use 2 or more"
        )


def check_batches(loader: Sized) -> None:
    """Refuse a loader without batches, with which training would do nothing."""
    if len(loader) == 0:
        raise ValueError(
            "the loader has no batch; its data set is empty, or smaller than "
            "batch_size while drop_last is True"
        )
