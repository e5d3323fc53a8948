"""The plots of the village: what happens, in which order, to whom.

A plot calls `s(event, x=..., t=...)` for one thing after another; `sentences.txt` has
the words. `s` is the teller (`village.py`), who draws people, things and places.
"""

from collections.abc import Callable
from typing import NamedTuple


class Plot(NamedTuple):
    """A plot: a function that tells it, what it is about, which things it takes."""

    tell: Callable
    about: str
    takes: str


PLOTS: dict[str, Plot] = {}


def plot(about: str, takes: str = "things"):
    """Enter a plot in `PLOTS`; `takes` is the list of words its main thing is from."""

    def enter(tell: Callable) -> Callable:
        PLOTS[tell.__name__] = Plot(tell, about, takes)
        return tell

    return enter


@plot("a {k} loses a {t}")
def lost(s, x, y, t):
    s.get(x, t)
    p, q = s.places(2)
    side, spot = s.pick("sides"), s.pick("spots")
    s("lay", x=x, t=t, s=side, o=spot, p=p)
    s("go_on", x=x, p=q)
    s("miss", x=x, t=t)
    s("searches", x=x, t=t)
    s.para()
    s.meets(x, y)
    s("saw", y=y, t=t, s=side, o=spot, p=p)
    s("find", x=x, t=t, s=side, o=spot, p=p)
    s("thank", x=x, y=y, k=y.kind)


@plot("a {k} swaps a {t} for something else")
def swap(s, x, y, t):
    s.get(x, t, "had_long")
    u = s.thing()
    s("want", x=x, u=u)
    s("takes_along", x=x, t=t, p=s.places(1)[0])
    s.meets(x, y)
    s("carry", x=y, t=u, a=s.look(u))
    s.para()
    s("admire", x=x, y=y, t=t, u=u)
    s("swap", x=x, y=y, t=t, u=u)
    s("swapped", x=x, y=y, t=t, u=u)
    if s.chance(0.5):
        s.para()
        s("regret", x=x, y=y, t=t, u=u)
        s("swap_back", x=x, y=y, t=t, u=u)


@plot("a {k} looks for a present and finds a {t}")
def present(s, x, y, t):
    s.friend(x, y)
    s("birthday", x=x, y=y)
    s("wish", x=x, y=y, t=t)
    z = s.other()
    s("goes_looking", x=x, p=s.places(1)[0])
    s.meets(x, z)
    s("shows", y=z, t=t, a=s.look(t))
    s("bargain", x=x, y=y, z=z, t=t)
    s.para()
    s("present", x=x, y=y, t=t, k=y.kind)


@plot("a {k} falls into a hole and gives away a {t}")
def stuck(s, x, y, t):
    s.get(x, t)
    p, q = s.places(2)
    s("go", x=x, p=p)
    hole, tool = s.pick("holes"), s.pick("tools")
    s("stuck", x=x, h=hole, p=p)
    s("help", x=x, h=hole)
    s.para()
    if s.knows(y):
        s("looks_down_again", x=x, y=y)
    else:
        s("looks_down", x=x, y=y, k=y.kind)
    s("needs_tool", x=x, y=y, l=tool, q=q)
    s("fetch_tool", x=x, y=y, l=tool, q=q)
    s("free", x=x, y=y, l=tool, h=hole)
    s("reward", x=x, y=y, t=t)
    s.ends_with("end_stuck", x=x, y=y)


@plot("a {k} breaks the {t} of a friend", "breakable")
def broke(s, x, y, t):
    p, q = s.places(2)
    s.visits(x, y, p)
    s("treasure", x=x, y=y, t=t, a=s.look(t))
    s("leave", y=y, x=x)
    s("breaks", x=x, t=t)
    s("hide_pieces", x=x, q=q)
    s.para()
    s("seek", x=x, y=y, t=t)
    s("confess", x=x, y=y, t=t, q=q)
    s("forgive", x=x, y=y, t=t)
    s("mend", x=x, y=y, t=t, q=q)
    s.ends_with("end_broke", x=x, y=y, t=t)


@plot("a {k} makes a {t} for a friend", "foods")
def bake(s, x, y, f):
    s.friend(x, y)
    p, q = s.places(2)
    i, z = s.pick("ingredients"), s.other()
    s("wants_to_bake", x=x, y=y, f=f)
    s("lacks", x=x, f=f, i=i)
    s("in_vain", x=x, i=i, p=p)
    s("found_at", x=x, z=z, i=i, q=q, k=z.kind)
    s.para()
    s("bakes", x=x, f=f, i=i, z=z)
    s("eats", x=x, y=y, f=f, i=i)
    if s.chance(0.7):
        s("say_where_from", x=x, y=y, z=z, f=f, i=i, q=q)
    s.ends_with("end_food", x=x, y=y)


@plot("a {k} lends a {t} to a friend")
def lend(s, x, y, t):
    s.friend(x, y)
    s.get(x, t)
    z, (p,) = s.other(), s.places(1)
    s("lend", x=x, y=y, t=t)
    s("lend_on", y=y, z=z, t=t, k=z.kind)
    s.para()
    s("ask_back", x=x, y=y, t=t)
    s("not_here", y=y, z=z, x=x)
    s("get_back", x=x, y=y, z=z, t=t, p=p)


@plot("a {k} has a secret, and it is a {t}")
def secret(s, x, y, t):
    s.friend(x, y)
    z, (p,) = s.other(), s.places(1)
    s("neighbour", y=z, k=z.kind)
    side, spot = s.pick("sides"), s.pick("spots")
    s("secret", x=x, y=y, z=z, t=t, a=s.look(t))
    s("hides", x=x, y=y, t=t, s=side, o=spot, p=p)
    s.para()
    s("asks_secret", x=x, y=y, z=z, p=p)
    s("reveal", x=x, z=z, t=t, s=side, o=spot, p=p)


@plot("a {k} is afraid of the noise of a {t}", "noisy")
def noise(s, x, y, t):
    s.friend(x, y)
    z, (p,) = s.other(), s.places(1)
    s("noise", x=x, p=p)
    s("afraid", x=x)
    s("wake", x=x, y=y, p=p)
    s.para()
    s("only", z=z, k=z.kind, t=t, a=s.look(t), p=p)
    s("explain", x=x, z=z, t=t)
    s("lesson", x=x, y=y, z=z, t=t)
    s.ends_with("end_night", x=x, y=y)


@plot("two friends take home the wrong things, one of them a {t}")
def mixed_up(s, x, y, t):
    s.get(x, t)
    s.friend(x, y)
    u = s.thing()
    s("brings_along", x=y, t=u, a=s.look(u))
    (p,) = s.places(1)
    s("both_put", x=x, y=y, t=t, u=u, p=p)
    s("mixed_up", x=x, y=y, t=t, u=u)
    s.para()
    s("notices", x=x, y=y, t=t, u=u)
    s("put_right", x=x, y=y, t=t, u=u)
    s("own_again", x=x, y=y, t=t, u=u)


@plot("a {k} runs a race for a {t}")
def race(s, x, y, t):
    s.friend(x, y)
    z, (p,) = s.other(), s.places(1)
    s("prize", z=z, k=z.kind, t=t, a=s.look(t), p=p)
    s("race", x=x, y=y, t=t)
    s("sleeps", x=x, y=y)
    s.para()
    s("wins", x=x, y=y, z=z, t=t, p=p)
    s("shares" if s.chance(0.5) else "keeps", x=x, y=y, t=t)
    s.ends_with("end_race", x=x, y=y)


@plot("a {k} looks for a {t} in the wrong place")
def moved(s, x, y, t):
    s.get(x, t)
    s.friend(x, y)
    z, (p, q) = s.other(), s.places(2)
    side, spot = s.pick("sides"), s.pick("spots")
    s("lay", x=x, t=t, s=side, o=spot, p=p)
    s("away", x=x)
    s("moves", x=x, y=y, t=t, q=q)
    s.para()
    s("looks_there", x=x, t=t, s=side, o=spot, p=p)
    s("blames", x=x, z=z, k=z.kind, t=t)
    s("innocent", x=x, z=z, t=t)
    s("clears_up", y=y, t=t, q=q)
    s("fetches", x=x, t=t, q=q)
    s("sorry", x=x, z=z)


@plot("two friends quarrel about a {t}", "breakable")
def quarrel(s, x, y, t):
    s.friend(x, y)
    (p,) = s.places(1)
    s("both_find", x=x, y=y, t=t, a=s.look(t), p=p)
    s("quarrel", x=x, y=y, t=t)
    s("tears", t=t)
    s.para()
    s("make_up", x=x, y=y, t=t)
    s("keeps_first", x=x, y=y, t=t)
    s.ends_with("end_quarrel", x=x, y=y, t=t)


@plot("somebody has eaten a {t}, and a {k} knows who", "foods")
def ate(s, x, y, f):
    (p,) = s.places(1)
    s.visits(x, y, p)
    s("bakery", x=x, y=y, f=f)
    s("leave", x=x, y=y)
    s("ate", x=x, y=y, f=f)
    s.para()
    s("who_ate", x=x, y=y, f=f)
    s("lie", x=x, f=f)
    s("caught", x=x, y=y, f=f)
    s("bake_new", x=x, y=y, f=f)
    s.ends_with("end_food", x=x, y=y)


@plot("a {k} carries a {t} to somebody")
def errand(s, x, y, t):
    s.friend(x, y)
    z, u, (p, q) = s.other(), s.thing(), s.places(2)
    s("errand", x=x, y=y, z=z, k=z.kind, t=t, a=s.look(t), q=q)
    s("wrong_place", x=x, z=z, p=p)
    s("deliver", x=x, z=z, t=t, q=q)
    s.para()
    s("return_gift", x=x, y=y, z=z, t=t, u=u, b=s.look(u))
    s("brings", x=x, y=y, z=z, u=u)
    s("both_have", x=x, y=y, z=z, t=t, u=u)
    s.ends_with("end_walk", x=x, y=y)


@plot("a {k} is ill and gets a {t}")
def ill(s, x, y, t):
    f = s.pick("foods")
    s("ill", x=x)
    if s.knows(y):
        s("brings_more", x=x, y=y, f=f)
    else:
        s("brings_food", x=x, y=y, k=y.kind, f=f)
    s("lends_comfort", x=x, y=y, t=t, a=s.look(t))
    s.para()
    s("well_again", x=x, f=f)
    s("other_ill", y=y)
    s("returns", x=x, y=y, t=t, f=f)
