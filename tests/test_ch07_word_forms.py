"""Which forms a word has: those of English spelling, and hardly another word's."""

import doctest

import pytest

from ch07_instructions import word_forms as module
from ch07_instructions.word_forms import word_forms

# A word, then forms of it: one that drops its e, keeps it, doubles its last letter, ...
FORMS = """\
climb climbs climbed climbing
dance dances danced dancing
see sees seeing saw seen
dye dyes dyed dyeing
tie ties tied tying
hop hops hopped hopping
stop stops stopped stopping
quiz quizzes quizzed quizzing
play plays played playing
snow snows snowed snowing
fix fixes fixed fixing
visit visits visited visiting
rain rains rained raining
cry cries cried crying
happy happier happiest
big bigger biggest
brave braver bravest
kite kites
bus buses
fox foxes
wish wishes wished wishing
church churches
kiss kisses kissed kissing
potato potatoes
puppy puppies
toy toys
be am is are was were been being
go goes going went gone
fly flies flying flew flown
run runs running ran
swim swims swimming swam swum
write writes writing wrote written
forget forgot forgotten
shine shines shining shone shined
child children
mouse mice
knife knives
good better best
sheep sheep"""
# A word, then what is none of its forms: another word's, or a wrong past.
OTHERS = """\
car cared caring care
win wind winds wine
hop hope hoped hoping
star stare stared staring
plan plane planes
pin pine pines
fall falled fallow
run runed runned rung
see seed seeed
fly flied
bring bringed
cat catch cattle
sing singed singe
tap tape taped
bee been
bus buss
mat matter
corn corner
bit bitter
wand wander
ham hammer
for forest"""


@pytest.mark.parametrize("line", FORMS.splitlines())
def test_a_word_has_the_forms_of_english(line):
    word, *forms = line.split()
    assert {word, *forms} <= word_forms(word)


@pytest.mark.parametrize("line", OTHERS.splitlines())
def test_a_word_has_no_other_words_forms_and_no_wrong_past(line):
    word, *others = line.split()
    assert word_forms(word).isdisjoint(others)


def test_the_tables_hold_a_word_once():
    rows = [row.split() for row in module.IRREGULAR_VERBS.split(", ")]
    assert all(len(row) == 3 for row in rows)
    bases = [row[0] for row in rows if row[0] != "be"]
    bases += [row.split()[0] for row in module.IRREGULAR_OTHERS.split(", ")]
    assert len(bases) == len(set(bases))


def test_its_example_is_true():
    assert doctest.testmod(module) == (0, 2)
