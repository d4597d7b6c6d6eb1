"""What a tokenizer adds to a text, and what it must not read in a user's: special tokens and a template's markers."""

import json
from collections.abc import Set

from tokenizers import Tokenizer

from core.errors import UserError

UNLIKELY = -1e4  # log probability: less than any spelling of a marker in pieces


def without_markers(tokenizer: Tokenizer, used: Set[int]) -> tuple[Tokenizer, set[int]]:
    """A copy of a tokenizer that reads markers as plain text, and the ids of the markers.

    Those are its special tokens and, of the other added ones, those that a template uses (`used`: the ids in it), as
    some models mark turns with tokens that are not special. White space stays what it is.
    Raises `UserError` where plain text gives a marker of the template all the same.
    """
    description = json.loads(tokenizer.to_str())
    for token in description["added_tokens"]:
        token["special"] |= bool(token["content"].strip()) and token["id"] in used
    markers = {token["id"]: token["content"] for token in description["added_tokens"] if token["special"]}
    if description["model"]["type"] == "Unigram":  # where special tokens are pieces too, and the likeliest
        pieces = description["model"]["vocab"]
        for marker in markers.keys() & {*range(len(pieces))}:
            pieces[marker][1] = UNLIKELY
    plain = Tokenizer.from_str(json.dumps(description))
    plain.encode_special_tokens = True
    for marker in markers.keys() & used:
        if marker in plain.encode(markers[marker], add_special_tokens=False).ids:
            raise UserError(
                f"the tokenizer reads {markers[marker]!r} in plain text as the marker that the template uses, so that "
                "a user could write it: use a template without it"
            )
    return plain, set(markers)


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer's post-processor puts before and after a text."""
    encoding = tokenizer.encode("a")
    mask = encoding.special_tokens_mask
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return encoding.ids[:first], encoding.ids[last:]
