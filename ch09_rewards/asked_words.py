"""The words that chapter 9 asks stories for, and which of them are held out.

One word of four is held out: no model learns from a request that has it. So a request
for three held-out words tells whether a model has learned to use the words that it is
*asked* for, and not only some words by heart.
"""

import random

__all__ = ["THINGS", "QUALITIES", "ACTIONS", "EXAMPLE", "draw_requests"]

EXAMPLE = ("kite", "brave", "climb")  # held out, as all three of its words are
THINGS = (
    "kite ball dog cat tree bird boat fish flower hat "
    "rock star cake bear box truck house river cloud frog "
    "apple train rabbit spoon garden book duck leaf moon shoe "
    "egg mouse drum bridge shell horse cookie swing puddle ladder "
    "castle bee blanket bell lake sand cup stick nest farm"
).split()
QUALITIES = (
    "brave happy red big little sad funny loud soft cold "
    "kind shiny hungry old fast quiet wet clever angry tall "
    "new lost sweet scared yellow strong tiny dark pretty warm "
    "sleepy lazy round silly heavy green nice lonely empty proud"
).split()
ACTIONS = (
    "climb run jump find share help dance sing hide build "
    "fly swim paint cry laugh catch dig wait push fall "
    "throw listen draw clean cook pull smile carry open fix "
    "wave hug eat sleep drop shout kick count touch bake"
).split()


def draw_requests(
    number: int, seed: int, held_out: bool = False
) -> list[tuple[str, str, str]]:
    """Different requests, each for a noun, an adjective and a verb, drawn by chance.

    They have held-out words alone, or none.

    Raises:
        ValueError: if there are not so many.
    """
    lists = [
        [word for i, word in enumerate(words) if (i % 4 == 0) == held_out]
        for words in (THINGS, QUALITIES, ACTIONS)
    ]
    possible = len(lists[0]) * len(lists[1]) * len(lists[2])
    if not 1 <= number <= possible:
        raise ValueError(
            f"{number} requests cannot be drawn; choose a number from 1 to {possible}"
        )
    chance = random.Random(seed)
    found: dict[tuple[str, str, str], None] = {}
    while len(found) < number:
        found[tuple(chance.choice(words) for words in lists)] = None
    return list(found)
