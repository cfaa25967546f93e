"""The grammar of stories: its likelihood against slow enumeration, its stories, what it says of broken texts."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from stab import StabError
from stab.tasks.language import grammar
from stab.tasks.language.grammar import (
    END,
    FLOOR,
    LONGEST,
    STAGES,
    WORDS,
    Grammar,
    Line,
    Reader,
    consistency,
    decode,
    encode,
    log_likelihood,
    opening,
    story,
)

MAIN = {"lists": grammar.LISTS, "forms": grammar.FORMS, "facts": grammar.FACTS, "unlike": grammar.UNLIKE,
        "stages": STAGES}  # fmt: skip
# Small enough to enumerate whole, with all that the stories have, and names that follow pronouns in any order.
TINY = {
    "lists": {"name": ("al bo", "cy di"), "hue": ("red tan",), "sort": ("ox elk yak",)},
    "forms": {"he": ("he", "she"), "his": ("his", "her")},
    "facts": {"one": "name", "two": "name", "hue": "hue", "sort": "sort", "else": "sort"},
    "unlike": [("one", "two"), ("sort", "else")],
    "stages": (
        (Line(1, "{one.he} ran ."), Line(2, "{two.his} {sort} ran ."), Line(1, "{one} ran ."), Line(1, "")),
        (Line(2, "{two} sat . {one} ran .", sets="sat calm"), Line(1, "{two} sat .", sets="sat"), Line(1, "red ran .")),
        (Line(1, "{one.his} {hue} {sort} saw {two.his} {else} .", "sat"), Line(1, "the end .", "sat calm"),
         Line(3, "{one} saw {two} .", "calm"), Line(1, "{one.he} saw a {hue} {else} .")),
    ),
}  # fmt: skip


def lines(stages, stage, tags):
    """The lines of a stage that may be told, with their probabilities and the tags behind them."""
    told = [line for line in stages[stage] if set(line.when.split()) <= tags]
    total = sum(line.weight for line in told)
    return [
        (line.weight / total, line.text.split(), tags | set(line.sets.split())) for line in told
    ]


def tell(source, piece, facts):
    """The word of a piece, all facts known."""
    if piece[0] != "{":
        return piece
    fact, _, form = piece[1:-1].partition(".")
    if not form:
        return facts[fact]
    groups = source["lists"][source["facts"][fact]]
    return source["forms"][form][[facts[fact] in group.split() for group in groups].index(True)]


def everything(source, wanted):
    """Every choice of the wanted facts."""
    lists = [" ".join(source["lists"][source["facts"][fact]]).split() for fact in wanted]
    choices = (dict(zip(wanted, words, strict=True)) for words in itertools.product(*lists))
    pairs = [pair for pair in source["unlike"] if set(pair) <= set(wanted)]
    return [facts for facts in choices if all(facts[a] != facts[b] for a, b in pairs)]


def texts(source):
    """{text: probability}, by telling every sequence of lines with every choice of the facts."""
    chances = collections.Counter()
    chosen = everything(source, list(source["facts"]))

    def go(stage, tags, chance, pieces):
        if stage == len(source["stages"]):
            for facts in chosen:
                chances[(*(tell(source, piece, facts) for piece in pieces), "<end>")] += (
                    chance / len(chosen)
                )
            return
        for p, text, after in lines(source["stages"], stage, tags):
            go(stage + 1, after, chance * p, pieces + text)

    go(0, set(), 1.0, [])
    return chances


def begins(source, words):
    """P(a text begins with these words), summed over the sequences of lines; of each, the share of choices of the facts
    that tell the words, fact by fact (two that differ together)."""
    partner = {a: b for pair in source["unlike"] for a, b in (pair, pair[::-1])}

    def share(said):
        product, left = 1.0, dict.fromkeys(piece[1:-1].partition(".")[0] for piece, _ in said[::-1])
        while left and product:
            together = [next(iter(left))]
            together += [partner[together[0]]] if together[0] in partner else []
            choices = everything(source, together)
            own = [
                (piece, word) for piece, word in said if piece[1:-1].partition(".")[0] in together
            ]
            product *= sum(
                all(tell(source, p, f) == word for p, word in own) for f in choices
            ) / len(choices)
            for fact in together:
                left.pop(fact, None)
        return product

    def go(stage, tags, said, left):
        if not left:
            return share(said)
        if stage == len(source["stages"]):
            return share(said) * (left == ["<end>"])
        total = 0.0
        for p, text, after in lines(source["stages"], stage, tags):
            both = list(zip(text, left, strict=False))
            if all(piece[0] == "{" or piece == word for piece, word in both):
                total += p * go(
                    stage + 1, after, said + [b for b in both if b[0][0] == "{"], left[len(text) :]
                )
        return total

    return go(0, set(), [], list(words))


def chances(reader, words=WORDS):
    """p of every token as the next one."""
    said = [copy.copy(reader).read(token) for token in range(len(words))]
    return np.array([math.exp(x) if x > FLOOR else 0.0 for x in said])


def read(text, reader=None):
    reader = reader or Reader()
    return [reader.read(token) for token in encode(text)]


def stories(count, seed=0):
    rng = np.random.default_rng(seed)
    return [story(rng) for _ in range(count)]


def test_a_tiny_grammar_enumerated_whole():
    source = Grammar(**TINY)
    exact = texts(TINY)
    assert len(exact) > 1000
    assert sum(exact.values()) == pytest.approx(1, abs=1e-12)
    assert max(map(len, exact)) == source.first.longest
    prefixes = collections.Counter()
    for text, p in exact.items():
        for n in range(len(text) + 1):
            prefixes[text[:n]] += p
    for text in exact:
        reader = Reader(source)
        for n, word in enumerate(text):
            expected = math.log(prefixes[text[: n + 1]] / prefixes[text[:n]])
            assert reader.read(source.tokens[word]) == pytest.approx(expected, abs=1e-10)
            assert reader.over == (n == len(text) - 1)
    for prefix in list(prefixes)[::20]:  # no word is possible but those that some text goes on with
        reader = Reader(source)
        for word in prefix:
            reader.read(source.tokens[word])
        if not reader.over:
            follow = {word for word in source.words if (*prefix, word) in prefixes}
            assert {
                source.words[i] for i in np.flatnonzero(chances(reader, source.words))
            } == follow


def test_broken_texts_of_a_tiny_grammar_against_enumeration():
    """What is left of every text, with its probability; a broken sentence takes the next one off each."""
    source, exact, rng = Grammar(**TINY), texts(TINY), np.random.default_rng(0)
    breaks = 0
    for _ in range(200):
        reader, left, broken = Reader(source), exact, False
        for token in source.story(rng):
            word = source.words[token if rng.random() < 0.9 else rng.integers(len(source.words))]
            follow = collections.Counter()
            for text, p in left.items():
                if text[0] == word and not broken:
                    follow[text[1:]] += p
            said = reader.read(source.tokens[word])
            if follow:
                assert said == pytest.approx(
                    math.log(sum(follow.values()) / sum(left.values())), abs=1e-10
                )
                left = follow
            else:
                assert said == FLOOR
                breaks += not broken
                broken = word != "."
                if not broken:
                    for text, p in left.items():
                        follow[text if text == ("<end>",) else text[text.index(".") + 1 :]] += p
                    left = follow
            if reader.over:
                assert set(left) == {()}
                break
    assert breaks > 100


def test_a_tiny_grammars_stories_are_as_frequent_as_their_likelihood_says():
    source, exact, count = Grammar(**TINY), texts(TINY), 20_000
    rng = np.random.default_rng(0)
    found = collections.Counter(
        tuple(source.words[t] for t in source.story(rng)) for _ in range(count)
    )
    assert set(found) <= set(exact)
    common = [text for text, p in exact.items() if p * count >= 5]
    observed = [found[text] for text in common]
    expected = [exact[text] * count for text in common]
    observed, expected = [*observed, count - sum(observed)], [*expected, count - sum(expected)]
    assert len(common) > 500
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_whole_stories_against_enumeration():
    for tokens in stories(3):
        words = [WORDS[t] for t in tokens]
        whole = [math.log(begins(MAIN, words[:n])) for n in range(len(words) + 1)]
        assert log_likelihood(tokens) == pytest.approx(np.diff(whole), abs=1e-10)


@pytest.mark.parametrize(
    "text",
    [
        "once there was a shy",
        "once there was a shy cat. her name was",
        "lily was a shy cat. she lived in a red hut near the",
        "lily was a shy cat. lily lived with her",
        "lily was a shy cat. her hut near the well was red. she loved to",
        "lily was a shy cat. her hut near the well was red. lily ate cake every day. one cold day",
    ],
)
def test_every_next_word_against_enumeration(text):
    reader, words = Reader(), text.replace(".", " .").split()
    read(text, reader)
    before = begins(MAIN, words)
    expected = [begins(MAIN, [*words, word]) / before for word in WORDS]
    np.testing.assert_allclose(chances(reader), expected, rtol=0, atol=1e-10)


def test_the_next_words_probabilities_sum_to_one_and_are_those_of_stories():
    """-log p of the token that comes has the mean -sum p log p given the text: summed differences are a martingale."""
    surprise, squares, rarest = 0.0, 0.0, 1.0
    for tokens in stories(16):
        reader = Reader()
        for token in tokens:
            p = chances(reader)
            assert p.sum() == pytest.approx(1, abs=1e-10)
            p = p[p > 0]
            said, expected = reader.read(token), -(p * np.log(p)).sum()
            surprise += -said - expected
            squares += (p * np.log(p) ** 2).sum() - expected**2
            rarest = min(rarest, p.min())
    assert abs(surprise) < 3 * math.sqrt(squares)
    assert math.log(rarest) > FLOOR + 2


def test_the_floor_lies_below_every_possible_token_of_broken_texts_too():
    rng, rarest = np.random.default_rng(1), 0.0
    for tokens in stories(300, seed=1):
        broken = [
            int(rng.integers(len(WORDS))) if rng.random() < 0.05 else token for token in tokens
        ]
        reader = Reader()
        for token in broken:
            said = reader.read(token)
            rarest = min(rarest, said if said > FLOOR else 0)
            if reader.over:
                break
    assert rarest > FLOOR + 1


def test_stories_are_possible_end_and_are_not_too_long():
    for tokens in stories(500):
        said = log_likelihood(tokens)
        assert tokens[-1] == END
        assert END not in tokens[:-1]
        assert len(tokens) <= LONGEST
        assert min(said) > FLOOR
        assert max(said) <= 0


def test_the_longest_story():
    @functools.cache
    def longest(stage, tags):
        if stage == len(STAGES):
            return ["<end>"]
        return max(
            (
                t + longest(stage + 1, frozenset(after))
                for _, t, after in lines(STAGES, stage, tags)
            ),
            key=len,
        )

    pieces = longest(0, frozenset())
    assert len(pieces) == LONGEST
    facts = {fact: grammar.LISTS[name][0].split()[fact in ("friend", "species", "far")]
             for fact, name in grammar.FACTS.items()}  # fmt: skip
    tokens = encode(" ".join(tell(MAIN, piece, facts) for piece in pieces))
    assert min(log_likelihood(tokens)) > FLOOR


def test_every_fact_is_told_again_late():
    """The first sentences decide words of the last ones: else nothing would be far-reaching."""
    last = " ".join(line.text for line in STAGES[-1])
    for fact in (
        "hero",
        "kind",
        "trait",
        "home",
        "dwelling",
        "food",
        "hue",
        "thing",
        "friend",
        "weather",
        "parent",
    ):
        assert f"{{{fact}}}" in last


def test_the_vocabulary():
    assert WORDS[END] == "<end>"
    assert len(set(WORDS)) == len(WORDS)
    assert 200 <= len(WORDS) <= 400
    seen = {token for tokens in stories(1000) for token in tokens}
    assert seen == set(range(len(WORDS)))


def test_the_opening():
    first, second = "once there was a shy cat. ", "her name was lily. "
    rest = "she lived in a red hut."
    assert opening(encode(first + second + rest)) == len(encode(first + second))
    assert opening(encode("lily was a shy cat. " + rest)) == 6
    for tokens in stories(100):
        told = decode(tokens[: opening(tokens)])
        assert told[-1] == "."
        assert 1 <= told.count(".") <= 2
    with pytest.raises(StabError, match="no opening"):
        opening(encode(first + rest))


def test_equal_seeds_tell_equal_stories():
    assert stories(5, seed=3) == stories(5, seed=3)
    assert stories(5, seed=3) != stories(5, seed=4)
    assert log_likelihood(stories(1)[0]) == log_likelihood(stories(1)[0])


def test_text_and_tokens():
    for tokens in stories(50):
        assert encode(decode(tokens)) == tokens
    assert decode(encode("lily , a cat .")) == "lily, a cat."
    assert encode("<end>") == [END]
    with pytest.raises(
        StabError, match=r"'lilly' is none of the \d+ words of the grammar. Did you mean 'lily'\?"
    ):
        encode("lilly was a cat.")


LILY = "lily was a shy cat. she lived in a red hut. lily ate cake every day. one cold day lily lost her blue key. "
END_OF_LILY = "tom the dog came to help. tom saw the blue key behind a log. lily the cat and tom ate cake in the red hut."


def test_an_impossible_token_costs_the_floor_until_its_sentence_ends():
    said = read(LILY)
    start = len(encode("lily was a shy"))
    broken = read(LILY.replace("shy cat.", "shy lived cat cat."))
    assert broken[:start] == said[:start]
    assert broken[start : start + 4] == [FLOOR] * 4
    assert (
        read("lily was a shy. she")[4] == FLOOR
    )  # a "." too early is impossible, and ends its sentence
    assert read("lily was a shy. she")[5] == pytest.approx(math.log(6 / 10))


def test_the_source_goes_on_behind_a_broken_sentence_with_the_facts_told():
    # The hut's colour was told before the break: it costs nothing later, and no other is possible.
    reader = Reader()
    read("lily was a shy cat. she lived in a red red. one cold day lily lost her blue key. tom the dog came to help. "
         "tom saw the blue key behind a log. then she went back to the", reader)  # fmt: skip
    p = chances(reader)
    assert p[encode("red")] == pytest.approx(1)
    read("red", reader)
    # The dwelling was not: any of the list.
    assert chances(reader)[encode("hut barn tower")] == pytest.approx(1 / 6)


def test_unknown_facts_are_drawn_at_their_next_mention():
    """A broken first sentence tells nothing: a pronoun then tells the group of the name, a name one of the group."""
    reader = Reader()
    assert read("was was.", reader) == [FLOOR] * 3
    # 7 in 10 introductions are one sentence; 6 in 10 homes begin with the pronoun, half of the names are girls'.
    # 3 in 10 go on with "his name was".
    p = chances(reader)
    assert p.sum() == pytest.approx(1)
    assert p[encode("she he")] == pytest.approx(0.7 * 0.6 / 2)
    assert p[encode("her")] == pytest.approx(0.7 * 0.2 / 2 + 0.3 / 2)
    said = read("she lived in a red hut. lily", reader)
    assert said[0] == pytest.approx(math.log(0.21))
    assert said[1:3] == [0, 0]
    # Of what comes next, food (3 + 2 + 2 + 2 or 3 of none) begins with a name in 2 of 12, a girl's each 1 in 12.
    assert said[-1] == pytest.approx(math.log(2 / 12 / 12))
    reader = Reader()
    read("was was. she lived in a red hut.", reader)
    p = chances(reader)
    assert not p[encode("tom he his")].any()


def test_a_friend_told_before_the_hero_keeps_their_names_different():
    """Pairs of different names: hero a girl (12), friend any of the others (23)."""
    reader = Reader()
    read("was was. she lived in a red hut. was was. was was. her friend", reader)
    p = chances(reader)
    girl, boy = p[encode("lily")][0], p[encode("tom")][0]
    assert girl / boy == pytest.approx((11 / 12 / 23) / (1 / 23))
    assert 12 * girl + 12 * boy == pytest.approx(p.sum())


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_broken_anywhere_the_next_words_probabilities_sum_to_one_again(cut):
    for seed in range(3):
        tokens = stories(1, seed)[0][:cut]
        reader = Reader()
        for token in tokens:
            reader.read(token)
        for text in ("was was was.", "was.", "."):
            said = read(text, copy.copy(reader))
            other = copy.copy(reader)
            read(text, other)
            if said[-1] == FLOOR:
                assert chances(other).sum() == pytest.approx(1, abs=1e-10)


def test_contradictions_far_back():
    whole = encode(LILY + END_OF_LILY + " <end>")
    assert min(log_likelihood(whole)) > FLOOR
    for right, wrong in (
        ("red hut", "blue hut"),
        ("the cat", "the goat"),
        ("lily the", "lucy the"),
        ("tom ate", "max ate"),
    ):
        at = END_OF_LILY.rindex(right)
        text = LILY + END_OF_LILY[:at] + wrong + END_OF_LILY[at + len(right) :]
        told = encode(text + " <end>")
        first = next(i for i, (a, b) in enumerate(zip(told, whole)) if a != b)
        said = log_likelihood(told)
        assert said[:first] == log_likelihood(whole)[:first]
        assert said[first:-1] == [FLOOR] * (len(told) - first - 1)
        assert said[-1] > FLOOR  # behind the broken last sentence the source may end


def test_an_end_where_the_source_may_not_end_ends_nothing():
    reader = Reader()
    assert read("lily was a shy cat.", reader)[-1] == 0
    assert reader.read(END) == FLOOR
    assert not reader.over
    assert (
        read("she lived in a red hut.", reader) == [FLOOR] * 7
    )  # still the sentence that the end broke
    assert read("<end>", copy.copy(reader)) == [FLOOR]
    assert read("lily ate cake every day.", reader)[-1] == 0
    assert not reader.over


def test_behind_its_end_a_text_cannot_go_on():
    reader = Reader()
    said = read(LILY + END_OF_LILY + " <end>", reader)
    assert said[-1] == 0
    assert reader.over
    with pytest.raises(ValueError, match="the text is over"):
        reader.read(END)
    with pytest.raises(ValueError, match="the text is over"):
        log_likelihood(encode(LILY + END_OF_LILY + " <end> <end>"))
    reader = Reader()
    read(LILY + END_OF_LILY, reader)
    assert read("lily was a shy cat.", reader) == [FLOOR] * 6  # more than the source has to tell
    assert read("<end>", reader) == [0]


def whole(found):
    """What is left out, where there is nothing to share, counts as 1 here."""
    return {"sentences": 1, "facts": 1} | found


def test_shares_of_nothing_are_left_out():
    assert consistency(encode("lily was a shy cat."), 5) == {"until": 1, "sentences": 1}
    assert consistency(encode("lily lily"), 0) == {"until": 1, "sentences": 0}
    assert consistency([], 0) == {"until": 0}


def test_true_stories_are_consistent():
    for tokens in stories(100):
        first = opening(tokens)
        assert consistency(tokens, first) == {
            "sentences": 1,
            "facts": 1,
            "until": len(tokens) - first,
        }
        assert whole(consistency(tokens[: first + 9], first)) == {
            "sentences": 1,
            "facts": 1,
            "until": 9,
        }


@pytest.mark.parametrize(
    ("text", "sentences", "facts", "until"),
    [
        ("", 1, 1, 0),
        ("she lived in a red hut.", 1, 1, 7),
        ("he lived in a red hut.", 1, 0, 0),
        ("she lived in a red hut. lily ate cake every day.", 1, 1, 13),
        ("she lived in a red hut. lucy ate cake every day.", 1, 1 / 2, 7),
        ("she lived in a red red. lily ate cake every day.", 1 / 2, 1, 5),
        ("she lived in a red", 1, 1, 5),  # may still become a sentence
        ("she lived in a red red", 0, 1, 5),
        ("she lived in a red hut. <end>", 1, 1, 7),
        ("she lived in a <end> red hut.", 0, 1, 4),
        ("<end> she lived in a red hut.", 1, 1, 0),
        # Any sentence of the grammar parses, whatever should come: lily and shy are repeated, wolf is no cat.
        ("that night the shy wolf dreamed of the blue key.", 1, 1 / 2, 0),
        # The first telling counts, also against itself.
        (
            "she lived in a red hut. then she went back to the blue hut. then she went back to the red hut.",
            1,
            6 / 7,
            7,
        ),
        # What a broken sentence tells is not known.
        ("she lived in a red red. then she went back to the blue hut.", 1 / 2, 1, 5),
        # Read as a new friend rather than as a wrong hero.
        ("tom saw the blue key behind a log.", 1, 1, 0),
    ],
)
def test_consistency_of_broken_texts(text, sentences, facts, until):
    prompt = encode("lily was a shy cat.")
    found = consistency([*prompt, *encode(text)], len(prompt))
    assert whole(found) == pytest.approx({"sentences": sentences, "facts": facts, "until": until})


def test_consistency_counts_a_sentence_that_reaches_behind_the_prompt():
    tokens = encode("lily was a shy cat. he lived in a red hut. she loved cake.")
    assert consistency(tokens, 0)["facts"] == 1 / 2
    assert consistency(tokens, 10)["facts"] == 1 / 2
    assert consistency(tokens, 13) == {"sentences": 1, "facts": 1, "until": 4}
