"""What this library raises on purpose: one base and its few leaves.

Owns nothing else and imports nothing. Facts are attributes; messages name the field or the place, and
say what to do. No message carries a key, a token or a cookie.
"""

__all__ = [
    "InvalidDsn",
    "InvalidEnvelope",
    "MissingExtra",
    "OptionsError",
    "SealError",
    "TransportKitError",
]


class TransportKitError(Exception):
    """Base of everything this library raises on purpose."""


class OptionsError(TransportKitError, ValueError):
    """An option is unknown, of the wrong type, or out of range.

    Attributes:
        field: The option's name as `TransportOptions` spells it.
        problem: What is wrong and what would be right; never holds a secret's value.
        source: Where the value came from, such as `settings.TRANSPORT_KIT` or `environment`.
    """

    def __init__(self, field: str, problem: str, source: str = "arguments") -> None:
        super().__init__(field, problem, source)  # these args alone rebuild the error when unpickled
        self.field = field
        self.problem = problem
        self.source = source

    def __str__(self) -> str:
        return f"{self.field} ({self.source}): {self.problem}"


class MissingExtra(OptionsError):
    """An option asks for a package that is not installed; the message holds the install line."""

    def __init__(self, field: str, package: str, extra: str, source: str = "arguments") -> None:
        super().__init__(field, f"needs the package {package}: pip install 'transport-kit[{extra}]'", source)
        self.args = (field, package, extra, source)
        self.package = package
        self.extra = extra


class InvalidDsn(TransportKitError, ValueError):
    """A DSN can't be used. The text never holds the DSN itself, which carries a key.

    Attributes:
        reason: One of `invalid_url`, `invalid_scheme`, `missing_public_key`, `missing_host`,
            `invalid_port`, `missing_project_id`, `invalid_project_id`.
        hint: What to change, in one sentence.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason, hint)
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return f"invalid DSN ({self.reason}): {self.hint}"


class InvalidEnvelope(TransportKitError, ValueError):
    """Bytes are not an envelope, or an envelope breaks a rule that receivers check.

    Attributes:
        reason: For framing `empty`, `envelope_header`, `item_header`, `truncated`, `unterminated`,
            `too_many_items`; for `Envelope.validate` the rule's name.
        offset: Byte at which the fault begins; -1 when it concerns the whole.
        detail: What was found and what was expected.
    """

    def __init__(self, reason: str, offset: int, detail: str) -> None:
        super().__init__(reason, offset, detail)
        self.reason = reason
        self.offset = offset
        self.detail = detail

    def __str__(self) -> str:
        where = "" if self.offset < 0 else f" at byte {self.offset}"
        return f"invalid envelope ({self.reason}){where}: {self.detail}"


class SealError(TransportKitError, ValueError):
    """An envelope can't be turned into bytes that a receiver would take.

    Attributes:
        path: The value at fault, such as `event.extra.order[3]`.
        detail: What is wrong with it; never the value itself.
    """

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"can't seal {self.path}: {self.detail}"
