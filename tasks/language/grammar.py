"""A probabilistic grammar of simple children's stories: a source with an exact likelihood.

A story is a sequence of stages (introduction, home, ..., end). Each stage draws one of its lines by
weight: a template of one sentence or more, or of none; every sentence ends with ".". The slots of a
line show facts: who, where, what. The facts of a story are drawn uniformly, once, and every mention
repeats them, so that a fact told in the first sentence decides words of the last. Until its first
mention a fact can be any word of its list::

    p(word in a slot | text so far) = (choices of the facts that agree with text and word)
                                      / (choices that agree with the text)

A text told token by token has several derivations as long as lines begin alike; ``Reader`` keeps
them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from stab.registry import StabError, suggest

T = TypeVar("T")

END = 0  # the token "<end>": ends a text, and stands before its first word
# Cost of an impossible token in nats. The rarest possible ones cost 4.4, and about 6 after an
# impossible one.
FLOOR = -10.0


class Line(NamedTuple):
    """One way to tell a stage, drawn with ``weight`` / (sum over the stage's possible lines).

    Args:
        weight: above 0.
        text: words and {fact} or {fact.form} slots, separated by blanks; sentences end with ".".
            May be empty.
        when: tags, separated by blanks, all of which an earlier line must have set for this one to
            be told.
        sets: tags that this line sets.
    """

    weight: float
    text: str
    when: str = ""
    sets: str = ""


# The words of a list, by group: a pronoun tells the group of a name.
LISTS: dict[str, tuple[str, ...]] = {
    "name": (
        "ben finn hugo jack leo luke max noah oscar sam theo tom",
        "anna clara daisy ella emma lily lucy mia nora rosa ruby zoe",
    ),
    "kind": (
        "bear cat dog duck fox frog goat hen horse mouse pig rabbit sheep squirrel turtle wolf",
    ),
    "trait": ("brave clever gentle lazy little proud quiet shy silly young",),
    "colour": ("black blue brown green pink red white yellow",),
    "dwelling": ("barn cabin cottage house hut tower",),
    "place": (
        "beach bridge castle cave farm field forest garden hill lake market meadow mill pond river"
        " well",
    ),
    "parent": ("brother father grandfather uncle", "aunt grandmother mother sister"),
    "food": ("apples berries bread cake carrots cheese cookies honey nuts pancakes plums soup",),
    "weather": ("cloudy cold foggy rainy snowy sunny warm windy",),
    "thing": ("ball bell boat book coin cup doll drum flute hat key kite lamp mirror ring scarf",),
    "spot": ("barrel basket bench bush fence gate log rock tree wagon",),
    "stranger": ("baker farmer king miller painter queen sailor shepherd teacher wizard",),
}
# {fact.form} shows the group of the fact's word: the first form for the first group, and so on.
FORMS = {"he": ("he", "she"), "his": ("his", "her"), "him": ("him", "her")}
# Which list a fact is drawn from, and which pairs of facts differ.
FACTS = {
    "hero": "name", "kind": "kind", "trait": "trait", "home": "colour", "dwelling": "dwelling",
    "near": "place", "parent": "parent", "food": "food", "weather": "weather", "hue": "colour",
    "thing": "thing", "friend": "name", "species": "kind", "far": "place", "spot": "spot",
    "stranger": "stranger",
}  # fmt: skip
UNLIKE = (("hero", "friend"), ("kind", "species"), ("near", "far"))

STAGES: tuple[tuple[Line, ...], ...] = (
    (  # who: tells hero and kind, see ``opening``
        Line(2, "once upon a time there was a {trait} {kind} named {hero} ."),
        Line(3, "once there was a {trait} {kind} . {hero.his} name was {hero} ."),
        Line(2, "once there was a {trait} {kind} named {hero} ."),
        Line(3, "{hero} was a {trait} {kind} ."),
    ),
    (  # home
        Line(3, "{hero.he} lived in a {home} {dwelling} ."),
        Line(3, "{hero.he} lived in a {home} {dwelling} near the {near} ."),
        Line(2, "{hero} lived with {hero.his} {parent} in a {home} {dwelling} ."),
        Line(2, "{hero.his} {dwelling} near the {near} was {home} ."),
    ),
    (  # what was loved
        Line(3, "{hero.he} loved to eat {food} ."),
        Line(2, "{hero.he} loved {food} ."),
        Line(2, "{hero.he} loved to play with {hero.his} {parent} ."),
        Line(2, "{hero} ate {food} every day ."),
        Line(3, ""),
    ),
    (  # what was wanted
        Line(3, "one {weather} day {hero} lost {hero.his} {hue} {thing} .", sets="lost"),
        Line(1, "one {weather} day the {kind} lost {hero.his} {hue} {thing} .", sets="lost"),
        Line(3, "one {weather} day {hero} wanted a {hue} {thing} .", sets="wanted"),
        Line(2, "one {weather} day {hero.his} {parent} asked for a {hue} {thing} .", sets="gift"),
    ),
    (  # the friend
        Line(3, "{hero.he} asked a {species} named {friend} for help ."),
        Line(2, "{friend} the {species} came to help ."),
        Line(2, "{hero.his} friend {friend} , a {species} , wanted to help ."),
    ),
    (  # the search
        Line(3, "they looked near the {far} ."),
        Line(2, "they walked to the {far} and sang ."),
        Line(2, "they ate some {food} near the {far} ."),
        Line(7, ""),
    ),
    (  # how it went
        Line(3, "at the {far} they found the {thing} under a {spot} .", sets="found happy"),
        Line(2, "{friend} saw the {hue} {thing} behind a {spot} .", sets="found happy"),
        Line(3, "at the {far} they met a {stranger} who had the {thing} .", sets="given happy"),
        Line(2, "they looked behind a {spot} , but found no {thing} .", sets="sad"),
        Line(1, "at the {far} they found a {spot} , but no {thing} .", sets="sad"),
    ),
    (  # what came of it
        Line(2, "{hero} was very happy and thanked the {species} .", "found"),
        Line(1, "{hero} was very happy .", "found"),
        Line(5, "", "found"),
        Line(2, "the {stranger} gave it to {hero} for some {food} .", "given"),
        Line(1, "the {stranger} gave it to {hero} .", "given"),
        Line(2, "{hero} was very sad , and {friend} hugged {hero.him} .", "sad"),
        Line(2, "{hero} was very sad .", "sad"),
        Line(1, "{hero.he} cried , and {friend} cried with {hero.him} .", "sad"),
        Line(3, "", "sad"),
    ),
    (  # home again
        Line(3, "then {hero.he} went back to the {home} {dwelling} ."),
        Line(2, "then {hero.his} {parent} made some {food} ."),
        Line(7, ""),
    ),
    (  # the end
        Line(3, "that night the {trait} {kind} slept next to the {hue} {thing} .", "lost happy"),
        Line(3, "that night the {trait} {kind} played with the {hue} {thing} .", "wanted happy"),
        Line(
            3,
            "{hero.his} {parent} loved the {hue} {thing} and hugged {hero} the {kind} .",
            "gift happy",
        ),
        Line(3, "{hero} the {kind} and {friend} ate {food} in the {home} {dwelling} .", "happy"),
        Line(3, "that night the {trait} {kind} dreamed of the {hue} {thing} .", "sad"),
        Line(3, "{hero} the {kind} ate {food} alone in the {home} {dwelling} .", "sad"),
        Line(1, "the {trait} {kind} never forgot that {weather} day ."),
    ),
)

Facts = tuple[frozenset[int], ...]  # of each fact, the words that it can be


class Slot:
    """A place for a fact in a line.

    Args:
        fact: which one: its index.
        other: index of the fact that differs from it, if any.
        says: what each word that can stand here says: the words that the fact can be.
    """

    def __init__(self, fact: int, other: int | None, says: dict[int, frozenset[int]]) -> None:
        self.fact, self.other, self.says = fact, other, says

    def take(self, facts: Facts, token: int) -> tuple[float, Facts] | None:
        """Return p(token | facts) and the facts known after it, or None if it is impossible.

        p = n(after) / n(before), n the choices of the fact: how many words it can be, or with a
        fact that differs, how many pairs of different words, |A| |B| - |A and B|.
        """
        words = self.says.get(token)
        if words is None:
            return None
        known = facts[self.fact]
        if known <= words:
            return 1.0, facts
        after = known & words
        chance = len(after) / len(known)
        if self.other is not None:
            other = facts[self.other]
            chance = _pairs(after, other) / _pairs(known, other)
        return (chance, (*facts[: self.fact], after, *facts[self.fact + 1 :])) if chance else None


def _pairs(a: frozenset[int], b: frozenset[int]) -> int:
    return len(a) * len(b) - len(a & b)


Piece = int | Slot  # of a line: a word as it stands, or a slot


class Node:
    """A place in a story: between two words of a line, or before a stage.

    Args:
        options: what can follow: (probability, piece, node behind it). Probabilities sum to 1;
            none: the text is over.
        behind: what follows the sentence that begins or continues here: (probability, node).
    """

    def __init__(
        self, options: list[tuple[float, Piece, Node]], behind: list[tuple[float, Node]]
    ) -> None:
        self.options, self.behind = options, behind
        # Tokens to the end, at most.
        self.longest: int = 1 + max(node.longest for _, _, node in options) if options else 0
        self.slots = [(p, piece, node) for p, piece, node in options if isinstance(piece, Slot)]
        self.words: dict[int, list[tuple[float, Node]]] = {}
        for p, piece, node in options:
            if not isinstance(piece, Slot):
                self.words.setdefault(piece, []).append((p, node))


class Grammar:
    """The source that the five tables describe; see ``LISTS`` ... ``STAGES`` for what each holds.

    Attributes:
        words: the vocabulary, ``words[END]`` first, the others in alphabetical order.
        first: the node that a story begins with.
        unknown: the facts before anything is told.
        sentences: every sentence that a line holds, as pieces.
    """

    def __init__(
        self,
        lists: dict[str, tuple[str, ...]],
        forms: dict[str, tuple[str, str]],
        facts: dict[str, str],
        unlike: Iterable[tuple[str, str]],
        stages: Sequence[Sequence[Line]],
    ) -> None:
        texts = [line.text for stage in stages for line in stage]
        used = {word for text in texts for word in text.split() if word[0] != "{"} | {"."}
        used |= {word for groups in lists.values() for group in groups for word in group.split()}
        used |= {word for words in forms.values() for word in words}
        self.words = ("<end>", *sorted(used))
        self.tokens = {word: token for token, word in enumerate(self.words)}
        self.stop = self.tokens["."]
        groups = {name: [self._set(group.split()) for group in lists[name]] for name in lists}
        self.unknown: Facts = tuple(
            frozenset[int]().union(*groups[name]) for name in facts.values()
        )
        index = {name: i for i, name in enumerate(facts)}
        differs = {a: index[b] for pair in unlike for a, b in (pair, pair[::-1])}
        self._slots: dict[str, Slot] = {}
        for fact, name in facts.items():
            place = (index[fact], differs.get(fact))
            own = [self.tokens[word] for group in lists[name] for word in group.split()]
            self._slots[f"{{{fact}}}"] = Slot(*place, {token: frozenset((token,)) for token in own})
            if len(groups[name]) > 1:
                for form, words in forms.items():
                    says = {
                        self.tokens[word]: group
                        for word, group in zip(words, groups[name], strict=True)
                    }
                    self._slots[f"{{{fact}.{form}}}"] = Slot(*place, says)
        self.sentences: list[tuple[Piece, ...]] = []
        for text in texts:
            for sentence in text.split(" .")[:-1]:
                pieces = (*self._pieces(sentence), self.stop)
                if pieces not in self.sentences:
                    self.sentences.append(pieces)
        self._stages, self._nodes = stages, dict[tuple[int, frozenset[str]], Node]()
        self.first = self._node(0, frozenset())

    def _set(self, words: Iterable[str]) -> frozenset[int]:
        return frozenset(self.tokens[word] for word in words)

    def _pieces(self, text: str) -> list[Piece]:
        return [self._slots[word] if word[0] == "{" else self.tokens[word] for word in text.split()]

    def _node(self, stage: int, tags: frozenset[str]) -> Node:
        """The node before ``stage``; made once, so that derivations that meet again are one."""
        if (stage, tags) not in self._nodes:
            options: list[tuple[float, Piece, Node]] = []
            behind: list[tuple[float, Node]] = []
            if stage == len(self._stages):
                node = Node([(1.0, END, Node([], []))], behind)
                behind.append((1.0, node))  # only the end can follow
            else:
                lines = [line for line in self._stages[stage] if tags.issuperset(line.when.split())]
                total = sum(line.weight for line in lines)
                for line in lines:
                    # From the last piece to the first; an empty line gives the next stage's node.
                    node = after = self._node(stage + 1, tags.union(line.sets.split()))
                    for piece in reversed(self._pieces(line.text)):
                        if piece == self.stop:
                            after = node
                        node = Node([(1.0, piece, node)], [(1.0, after)])
                    chance = line.weight / total
                    options += [
                        (chance * p, piece, follower) for p, piece, follower in node.options
                    ]
                    behind += [(chance * p, follower) for p, follower in node.behind]
                node = Node(options, behind)
            self._nodes[stage, tags] = node
        return self._nodes[stage, tags]

    def story(self, rng: np.random.Generator) -> list[int]:
        """Return the tokens of a whole story; the last is END."""
        node, facts, tokens = self.first, self.unknown, []
        while node.options:
            piece, node = _draw(
                rng, [(p, (piece, follower)) for p, piece, follower in node.options]
            )
            if isinstance(piece, Slot):
                taken = [(token, piece.take(facts, token)) for token in piece.says]
                piece, facts = _draw(
                    rng, [(took[0], (token, took[1])) for token, took in taken if took]
                )
            tokens.append(piece)
        return tokens


def _draw(rng: np.random.Generator, chances: list[tuple[float, T]]) -> T:
    """Return one of (probability, it), probabilities summing to 1."""
    if len(chances) > 1:
        left = rng.random()
        for p, it in chances:
            left -= p
            if left < 0:
                return it
    return chances[-1][1]


STORIES = Grammar(LISTS, FORMS, FACTS, UNLIKE, STAGES)
WORDS: tuple[str, ...] = STORIES.words
LONGEST: int = STORIES.first.longest  # tokens of the longest story, END included


def story(rng: np.random.Generator) -> list[int]:
    """Return the tokens of a whole story, at most LONGEST; the last is END."""
    return STORIES.story(rng)


def opening(tokens: Sequence[int]) -> int:
    """Number of tokens of a story's prompt, which ends when the hero's name and kind are told.

    These are one or two sentences. Raises StabError if no sentence ends after a name and a kind.
    """
    names, kinds = (STORIES.unknown[list(FACTS).index(fact)] for fact in ("hero", "kind"))
    name = kind = False
    for i, token in enumerate(tokens):
        name, kind = name or token in names, kind or token in kinds
        if name and kind and token == STORIES.stop:
            return i + 1
    raise StabError(f"no opening: no sentence ends behind a name and a kind in {decode(tokens)!r}")


class Reader:
    """The source, reading a text token by token: an exact filter over its derivations.

    A token that no derivation allows is impossible. It costs FLOOR, and so does every further token
    of its sentence, the "." included. After it every derivation continues behind its sentence with
    the facts told so far: what the broken sentence would have told stays unknown until it is
    mentioned. An END at a place where the source may not end is such an impossible token and ends
    nothing.

    Attributes:
        over: whether the text has ended, with an END where the source may end.
    """

    def __init__(self, grammar: Grammar = STORIES) -> None:
        self.over = False
        self._stop, self._broken = grammar.stop, False
        # Weights sum to 1. Replaced by every read, never changed: copies of a reader are separate.
        self._derivations: dict[tuple[Node, Facts], float] = {(grammar.first, grammar.unknown): 1.0}

    def read(self, token: int) -> float:
        """Return log p(token | text so far) in nats, at least FLOOR; FLOOR if it is impossible.

        Raises ValueError after the end of the text.
        """
        if self.over:
            raise ValueError("the text is over: no token can follow its end")
        if not self._broken:
            after: dict[tuple[Node, Facts], float] = {}
            for (node, facts), weight in self._derivations.items():
                for p, follower in node.words.get(token, ()):
                    key = (follower, facts)
                    after[key] = after.get(key, 0.0) + weight * p
                for p, slot, follower in node.slots:
                    if took := slot.take(facts, token):
                        key = (follower, took[1])
                        after[key] = after.get(key, 0.0) + weight * p * took[0]
            if total := sum(after.values()):
                self._derivations = {key: weight / total for key, weight in after.items()}
                self.over = token == END
                # A sum of weights can round to just above 1.
                return max(math.log(min(total, 1.0)), FLOOR)
        self._broken = token != self._stop
        if not self._broken:
            after = {}
            for (node, facts), weight in self._derivations.items():
                for p, follower in node.behind:
                    key = (follower, facts)
                    after[key] = after.get(key, 0.0) + weight * p
            self._derivations = after
        return FLOOR


def log_likelihood(tokens: Iterable[int]) -> list[float]:
    """Return log p(token | those before it) in nats, or FLOOR, of each token; see ``Reader``.

    Raises ValueError if a token follows the end of the text.
    """
    reader = Reader()
    return [reader.read(token) for token in tokens]


def consistency(tokens: Sequence[int], first: int) -> dict[str, float]:
    """Return how well ``tokens[first:]`` continues the prompt ``tokens[:first]``.

    ``sentences``: the share of sentences that parse, that is, match some sentence of the grammar
    with any words of the right lists in its slots, whatever the facts and its place in a story.
    Sentences that end, with their ".", in tokens[first:] count. An unfinished last one fails, or
    does not count if it begins some sentence of the grammar. An END before a sentence is not part
    of it; one within makes it fail. Left out if no sentence counts.

    ``facts``: the share of mentions of known facts that repeat them, in the counted sentences that
    parse. A word in a slot is a mention if the text before it, prompt included, told something of
    the fact; a pronoun tells the group of a name. The first telling counts: a mention that
    contradicts it changes nothing. Sentences that do not parse tell nothing. One that parses in
    several ways is read as contradicting least, then as repeating most. Left out if there is no
    mention.

    ``until``: number of tokens of tokens[first:] before the first impossible one (see ``Reader``),
    or all.

    Raises ValueError if a token follows the end of the text.
    """
    nats = log_likelihood(tokens)[first:]
    parsed = failed = repeated = mentioned = 0
    facts, sentence = STORIES.unknown, list[int]()
    for i, token in enumerate(tokens):
        if sentence or token != END:
            sentence.append(token)
        if not sentence or (token != STORIES.stop and i < len(tokens) - 1):
            continue
        fitting = [pieces for pieces in STORIES.sentences if _fits(pieces, sentence)]
        if token == STORIES.stop and fitting:
            wrong, right, facts = min(
                (_mentions(p, sentence, facts) for p in fitting), key=lambda m: (m[0], -m[1])
            )
            if i >= first:
                parsed += 1
                repeated += right
                mentioned += right + wrong
        elif not fitting and i >= first:
            failed += 1
        sentence = []
    metrics = {"until": float(nats.index(FLOOR) if FLOOR in nats else len(nats))}
    if parsed + failed:
        metrics["sentences"] = parsed / (parsed + failed)
    if mentioned:
        metrics["facts"] = repeated / mentioned
    return metrics


def _fits(pieces: Sequence[Piece], sentence: Sequence[int]) -> bool:
    """Whether the sentence is, or begins, the sentence of these pieces with any facts."""
    return len(sentence) <= len(pieces) and all(
        token in piece.says if isinstance(piece, Slot) else token == piece
        for piece, token in zip(pieces, sentence, strict=False)
    )


def _mentions(
    pieces: Sequence[Piece], sentence: Sequence[int], facts: Facts
) -> tuple[int, int, Facts]:
    """Count mentions that contradict and that repeat known facts; return also the facts after."""
    wrong = right = 0
    for piece, token in zip(pieces, sentence, strict=True):
        if isinstance(piece, Slot):
            known, words = facts[piece.fact], piece.says[token]
            if not known & words:
                wrong += 1
                continue
            right += known != STORIES.unknown[piece.fact]
            facts = (*facts[: piece.fact], known & words, *facts[piece.fact + 1 :])
    return wrong, right, facts


def encode(text: str) -> list[int]:
    """Return the tokens of a text of words and marks; blanks before marks are optional.

    Raises StabError at a word that is not in WORDS.
    """
    words = text.replace(".", " .").replace(",", " ,").split()
    for word in words:
        if word not in STORIES.tokens:
            raise StabError(
                f"{word!r} is none of the {len(WORDS)} words of the grammar.{suggest(word, WORDS)}"
            )
    return [STORIES.tokens[word] for word in words]


def decode(tokens: Iterable[int]) -> str:
    """Return the text of tokens, marks right after their words; the inverse of ``encode``."""
    return " ".join(WORDS[token] for token in tokens).replace(" .", ".").replace(" ,", ",")
