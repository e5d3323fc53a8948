"""The operations of a `Value` that work like its own, or are made of them.

`Value` inherits them, so that its own cell holds only the idea.
"""

import math

from appendix_a_pytorch.guards import check_logarithm, check_power


class Operators:
    """Powers, `exp`, `log`, and `-`, `/` and reversed operations from `+`, `*`, `**`.

    A class that inherits this has `data`, and is made from a number and its parents,
    each a pair (value, slope).
    """

    def __pow__(self, n):
        check_power(self.data, n)
        slope = n * self.data ** (n - 1) if n else 0.0
        return type(self)(self.data**n, ((self, slope),))

    def exp(self):
        """e to the power of this value."""
        e = math.exp(self.data)
        return type(self)(e, ((self, e),))

    def log(self):
        """The natural logarithm; ValueError for 0 and below."""
        check_logarithm(self.data)
        return type(self)(math.log(self.data), ((self, 1 / self.data),))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        return self * other**-1

    def __rtruediv__(self, other):
        return self**-1 * other

    def __radd__(self, other):
        return self + other

    def __rmul__(self, other):
        return self * other
