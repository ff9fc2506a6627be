"""The nodes of names: the parts of a selector, and the selector. `kpatch.syntax.ast` has all nodes."""

import itertools
import math
from dataclasses import dataclass, field

from kpatch.syntax.words import KEYWORDS, is_digits, is_name, quote


class Node:
    """The base class of all nodes. `span` is the last field of each; `==` ignores it."""

    __slots__ = ()
    __match_args__: tuple = ()

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self  # frozen, all the way down

    def __reduce__(self):
        return type(self), tuple([getattr(self, name) for name in self.__match_args__])


def no_span():
    return field(default=(0, 0), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Name(Node):
    """One part of a selector, `kernel`, `0` or `"conv-1"`. A quoted Keras path holds slashes."""

    value: str
    span: tuple = no_span()

    def __str__(self):
        plain = is_name(self.value) and self.value not in KEYWORDS and self.value != "_"
        return self.value if plain or is_digits(self.value) else quote(self.value)


@dataclass(frozen=True, slots=True)
class Key(Name):
    """The model of a list, `[0]`, that a selector is meant for. No text holds one."""

    def __str__(self):
        return self.value


@dataclass(frozen=True, slots=True)
class Position(Node):
    """`layers[2]`, always followed by another part."""

    index: int
    span: tuple = no_span()

    def __str__(self):
        return f"layers[{self.index}]"


@dataclass(frozen=True, slots=True)
class Glob(Node):
    """`conv*`, `block?`, or `**` alone."""

    pattern: str
    span: tuple = no_span()

    def __str__(self):
        return self.pattern


@dataclass(frozen=True, slots=True)
class Choice(Node):
    """`(conv1|conv2)`, `block(1|2)_conv*`: a part that stands for several.

    Attributes:
        pieces: tuples of `Name`s and `Glob`s, side by side: the alternatives of a bracket, or one text.
    """

    pieces: tuple
    span: tuple = no_span()

    def __str__(self):
        shown = str if len(self.pieces) == 1 else letters
        texts = ["|".join(map(shown, piece)) for piece in self.pieces]
        return "".join(f"({t})" if len(p) > 1 else t for p, t in zip(self.pieces, texts, strict=True))

    def chosen(self, choices):
        """The `Name` or `Glob` of one choice, the next item of `choices` from each piece; its span is that of these."""
        return _side_by_side(list(itertools.islice(choices, len(self.pieces))), self.pieces)


def letters(part):
    """The text of a `Name` or a `Glob`, without quotes."""
    return part.pattern if type(part) is Glob else part.value


def _side_by_side(chosen, pieces):
    if len(chosen) == 1:
        return chosen[0]
    spans = [part.span for part, piece in zip(chosen, pieces, strict=True) if len(piece) > 1]
    kind = Glob if any(type(part) is Glob for part in chosen) else Name
    return kind("".join(map(letters, chosen)), (spans[0][0], spans[-1][1]))


@dataclass(frozen=True, slots=True)
class Selector(Node):
    """`encoder.layers[0].kernel`: names one tensor, or several by globs and alternatives."""

    parts: tuple
    span: tuple = no_span()

    def __str__(self):
        return ".".join(map(str, self.parts))

    @property
    def is_glob(self):
        """Whether the selector can match several tensors."""
        return any(type(part) in (Glob, Choice) for part in self.parts)

    @property
    def alternatives(self):
        """The selectors that it stands for, one after the other: itself, or one without a `Choice` for each choice."""
        at = [place for place, part in enumerate(self.parts) if type(part) is Choice]
        if not at:
            yield self
            return
        for every in itertools.product(*[piece for place in at for piece in self.parts[place].pieces]):
            choices = iter(every)
            parts = tuple([part.chosen(choices) if type(part) is Choice else part for part in self.parts])
            yield Selector(parts, (parts[at[0]].span[0], parts[at[-1]].span[1]))

    @property
    def walks(self):
        """How many of these have globs, at most."""
        pieces = [piece for part in self.parts if type(part) is Choice for piece in part.pieces]
        globs = any(type(part) is Glob for part in itertools.chain(self.parts, *pieces))
        return math.prod(map(len, pieces)) if globs else 0


def alternatives_of(selectors):
    """The selectors that several stand for, each without a `Choice`."""
    return [each for selector in selectors for each in selector.alternatives]
