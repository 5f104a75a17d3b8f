"""How signatures are checked in the pass of the tests that checks types at run time."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype
from pydantic import TypeAdapter

check = beartype(
    conf=BeartypeConf(
        # An int is accepted where a float is asked for, as type checkers do.
        is_pep484_tower=True,
        # Methods are decorated one by one, so that their class is not known; neither are
        # the generics of pydantic.
        hint_overrides=FrozenDict({Self: object, TypeAdapter[Any]: object}),
    )
)
