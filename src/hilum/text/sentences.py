"""Where sentences end: one splitter for snippets and labels.

Reports have lines that end because the paper did, findings numbered or bulleted, abbreviations, dates and
images ("Se. 4"). Source: our own rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from hilum.text.snippet_numbers import inside_brackets
from hilum.text.snippet_words import ABBREVIATIONS, ORDINAL, Token, tokens_of, words_of

MAX_SENTENCE = 2000
"""Characters after which a text without full stops is cut, so that work grows with its length only."""
SHORT_LINE = 60
"""A line this short did not end because the paper did."""
BULLETS = frozenset("-*•·–>")
QUOTES = frozenset('"“”»«')
ARTICLES = words_of("der die das dem den des im am zur zum vom ins beim the")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """First and last+1 character of every sentence, in order; nothing but white space lies between."""
    tokens = tokens_of(text)
    spans, first = [], 0
    for last in sentence_ends(text, tokens):
        spans.append((tokens[first].start, tokens[last].end))
        first = last + 1
    return spans


def sentence_ends(text: str, tokens: Sequence[Token], number_ends: frozenset[int] = frozenset()) -> list[int]:
    """The last token of every sentence.

    Args:
        text: the report. tokens: of it.
        number_ends: tokens whose number is an image's and ends no sentence.
    """
    inside = inside_brackets(tokens)
    ends: list[int] = []
    first = 0
    for index in range(len(tokens)):
        if index + 1 == len(tokens) or _ends(text, tokens, index, first, inside, number_ends):
            ends.append(index)
            first = index + 1
    return ends


def _ends(
    text: str,
    tokens: Sequence[Token],
    index: int,
    first: int,
    inside: Sequence[int],
    number_ends: frozenset[int],
) -> bool:
    """True when the sentence that began at token `first` ends with token `index`."""
    token, after = tokens[index], tokens[index + 1]
    if after.end - tokens[first].start > MAX_SENTENCE:
        return True
    opened = inside[index]
    if opened >= 0 and after.start - tokens[opened].start < 300:
        return False
    gap = text[token.end : after.start]
    initial = text[after.start]
    if after.text == "•" or (token.text in QUOTES and gap and index and text[token.start - 1] == "."):
        return not initial.islower()
    if "\n" in gap:
        return gap.count("\n") > 1 or token.text in ".:;!?" or _new_line(text, token, after, initial)
    if token.text in ("!", "?"):
        return bool(gap)
    if token.text != "." or not gap or initial.islower():
        return False
    before = tokens[index - 1] if index else token
    if before.kind == "word":
        return before.text not in ABBREVIATIONS
    if before.kind != "number" or index - 1 in number_ends:
        return True
    article = index > 1 and tokens[index - 2].text in ARTICLES
    return not article and after.text not in ORDINAL


def _new_line(text: str, token: Token, after: Token, initial: str) -> bool:
    """True when a line break ends a sentence although no full stop does."""
    length = token.end - (text.rfind("\n", max(0, token.end - SHORT_LINE - 1), token.end) + 1)
    short = length < SHORT_LINE and token.end - length >= 0
    counted = after.kind == "number" and text[after.end : after.end + 2] in (". ", ") ")
    return initial in BULLETS or counted or (short and initial.isupper())
