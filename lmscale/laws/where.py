"""Row filters such as `mode == train and params >= 1e8`, parsed by hand: nothing is executed.

    expression  := conjunction ("or" conjunction)*
    conjunction := negation ("and" negation)*
    negation    := "not" negation | "(" expression ")" | comparison
    comparison  := operand OP operand [OP operand] | operand ["not"] "in" "(" operand, ... ")"

OP is one of == != < <= > >=. A comparison is between one column and values. Quotes ("..", '..', or
`..`) are needed only around names and values with spaces or any of ()=!<>,.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from lmscale.laws.cell_numbers import parse_number
from lmscale.laws.errors import TableError

__all__ = ["select_rows"]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<quoted>"[^"]*"|'[^']*'|`[^`]*`)
    | (?P<op>==|!=|<=|>=|<|>|=)
    | (?P<mark>[(),])
    | (?P<word>[^\s()=!<>,"'`]+)
    )""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
#: The same comparison with its sides exchanged.
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


def select_rows(
    expression: str,
    column: Callable[[str], Sequence[Any] | np.ndarray | None],
    names: Sequence[str],
    n: int,
) -> np.ndarray:
    """The mask [n] of the rows for which `expression` holds.

    Args:
      expression: see the module.
      column: name -> the n cells of that column, or None if there is no such column.
      names: the names of all columns, for errors.

    Raises:
      TableError: the expression cannot be read or names no column; one line that shows the place.
    """
    return _Parser(expression, column, names, n).parse()


class _Parser:
    def __init__(self, text: str, column: Callable, names: Sequence[str], n: int):
        self.text, self.column, self.names, self.n = text, column, names, n
        self.tokens = self._tokens()
        self.at = 0

    def parse(self) -> np.ndarray:
        mask = self._or()
        if self._peek().kind != "end":
            self._fail(f"{self._peek().text!r} is not expected here; join comparisons by and, or")
        return mask

    # --- grammar ---------------------------------------------------------------------------------

    def _or(self) -> np.ndarray:
        mask = self._and()
        while self._word("or"):
            mask = mask | self._and()
        return mask

    def _and(self) -> np.ndarray:
        mask = self._not()
        while self._word("and"):
            mask = mask & self._not()
        return mask

    def _not(self) -> np.ndarray:
        if self._word("not"):
            return ~self._not()
        if self._mark("("):
            mask = self._or()
            if not self._mark(")"):
                self._fail("a closing ) is missing")
            return mask
        return self._comparison()

    def _comparison(self) -> np.ndarray:
        first = self._operand()
        negated = self._word("not")
        if self._word("in"):
            mask = self._is_in(first)
            return ~mask if negated else mask
        if negated:
            self._fail("after a column, not must be followed by in (..)")
        parts, signs = [first], []
        while self._peek().kind == "op" and len(parts) < 3:
            signs.append(self._operator())
            parts.append(self._operand())
        if not signs:
            self._fail("a comparison is missing: == != < <= > >= or in (..)")
        places = [i for i, part in enumerate(parts) if self.column(part.text) is not None]
        if not places:
            self._fail(self._no_column(parts[len(parts) == 3].text), parts[0])
        if len(parts) == 3:
            if places[0] != 1:
                self._fail("between two comparisons stands one column: 1e8 < params < 1e9", first)
            return self._compare(parts[1], _MIRRORED[signs[0]], parts[0]) & self._compare(
                parts[1], signs[1], parts[2]
            )
        if places[0] == 1:
            return self._compare(parts[1], _MIRRORED[signs[0]], parts[0])
        return self._compare(parts[0], signs[0], parts[1])

    def _is_in(self, name: _Token) -> np.ndarray:
        if self.column(name.text) is None:
            self._fail(self._no_column(name.text), name)
        if not self._mark("("):
            self._fail("in takes values in parentheses: mode in (train, valid)")
        mask = np.zeros(self.n, bool)
        while True:
            mask |= self._compare(name, "==", self._operand())
            if self._mark(")"):
                return mask
            if not self._mark(","):
                self._fail("values in parentheses are separated by commas and closed by )")

    # --- comparing -------------------------------------------------------------------------------

    def _compare(self, name: _Token, sign: str, value: _Token) -> np.ndarray:
        cells = self.column(name.text)
        if value.kind == "word" and self.column(value.text) is not None:
            self._fail(f"{value.text} is a column too; put quotes round a value", value)
        wanted = parse_number(value.text) if value.kind == "word" else None
        compare = _COMPARE[sign]
        if wanted is None and sign not in ("==", "!="):
            wanted = parse_number(value.text)
            if wanted is None:
                self._fail(f"{sign} compares with a number, not {value.text!r}", value)
        if wanted is None:
            words = np.array([_as_text(cell) for cell in cells], dtype=object)
            return compare(words, _as_text(value.text)).astype(bool)
        found = [parse_number(cell) for cell in cells]
        if sign not in ("==", "!=") and all(number is None for number in found):
            self._fail(f"column {name.text} holds no numbers to compare by {sign}", name)
        numbers = np.array([np.nan if number is None else number for number in found])
        # NaN is unequal to every number, and neither below nor above one. So a blank cell only meets !=.
        with np.errstate(invalid="ignore"):
            return compare(numbers, wanted)

    def _no_column(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "they are "
        return f"there is no column {name!r}; {hint}" + ("" if close else ", ".join(self.names))

    # --- tokens ----------------------------------------------------------------------------------

    def _tokens(self) -> list[_Token]:
        tokens, at = [], 0
        while self.text[at:].strip():
            match = _TOKEN.match(self.text, at)
            if match is None:
                at += len(self.text[at:]) - len(self.text[at:].lstrip())
                what = "a quote is not closed" if self.text[at] in "\"'`" else "cannot be read"
                self._fail(what, _Token("bad", self.text[at:], at))
            # One of the named groups has matched.
            kind = match.lastgroup or ""
            text = match[kind][1:-1] if kind == "quoted" else match[kind]
            tokens.append(_Token(kind, text, match.start(kind)))
            at = match.end()
        if not tokens:
            raise TableError('a row filter must say which rows to keep: "mode == train"')
        return [*tokens, _Token("end", "the end", len(self.text))]

    def _peek(self) -> _Token:
        return self.tokens[self.at]

    def _next(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def _word(self, word: str) -> bool:
        token = self._peek()
        found = token.kind == "word" and token.text.lower() == word
        self.at += found
        return found

    def _mark(self, mark: str) -> bool:
        token = self._peek()
        found = token.kind == "mark" and token.text == mark
        self.at += found
        return found

    def _operator(self) -> str:
        token = self._next()
        if token.text == "=":
            self._fail("equality is written ==", token)
        return token.text

    def _operand(self) -> _Token:
        token = self._peek()
        if token.kind not in ("word", "quoted") or (
            token.kind == "word" and token.text.lower() in ("and", "or", "not", "in")
        ):
            self._fail(f"a column or a value is missing before {token.text}")
        return self._next()

    def _fail(self, what: str, token: _Token | None = None) -> NoReturn:
        start = (token or self._peek()).start
        before, after = self.text[:start].rstrip(), self.text[start:]
        shown = f"{before} >>>{after}" if before else f">>>{after}"
        raise TableError(f"row filter: {what} (at >>> in {shown!r})")


def _as_text(cell: Any) -> str:
    """The text of a cell for comparison: blanks are empty, and true and false have no case."""
    text = "" if cell is None or (isinstance(cell, float) and np.isnan(cell)) else str(cell).strip()
    return text.lower() if text.lower() in ("true", "false") else text
