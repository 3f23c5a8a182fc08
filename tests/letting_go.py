"""Releases the frames of an exception, and the files that they hold open, in the test that raised it."""

from __future__ import annotations

import gc
import warnings

__all__ = ["let_go"]


def let_go(*errors: BaseException) -> None:
    """Free the frames of exceptions and of their causes now, with the files that they left open.

    Django leaves a request's temporary file open when an exception escapes from its ASGI handler; collected
    later, the warning would fail some other test.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for error in errors:
            held: BaseException | None = error
            while held is not None:
                held.__traceback__ = None
                held = held.__cause__ or held.__context__
        if errors:
            gc.collect()
