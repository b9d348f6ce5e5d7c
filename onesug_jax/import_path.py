"""The object that a setting names: a built-in one, or any other by its import path."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from onesug_jax.errors import UserError
from onesug_jax.signatures import nearest


def named(setting: str, value: str, ours: Mapping[str, Any]) -> Any:
    """`ours[value]`, or the object at the import path `package.module:name`.

    Args:
      setting: the name of the setting, for the message.

    Raises:
      UserError: it is neither, or the import fails.
    """
    if value in ours:
        return ours[value]
    module, colon, attribute = value.partition(":")
    if not colon:
        hint = f"; {nearest(value, ours, everything='there are')}" if ours else ""
        what = "a name or an import path" if ours else "an import path"
        raise UserError(f"{setting}={value!r}: expected {what} such as my_shop.parts:mine{hint}.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{setting}={value!r}: expected what Python imports: {error}. Name the folder that "
            "holds the module in PYTHONPATH, or correct the name."
        ) from None
