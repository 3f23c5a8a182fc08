"""The exceptions that this library raises on purpose: one base class and its subclasses.

This module imports nothing. Facts are attributes; a message names the field or the place, and the remedy. No
message contains a key, a token or a cookie.
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
    """Base class of every exception that this library raises on purpose."""


class OptionsError(TransportKitError, ValueError):
    """An option is unknown, of the wrong type, or out of range.

    Attributes:
        field: The option's name, as in `TransportOptions`.
        problem: The fault and the accepted values; never contains a secret's value.
        source: The origin of the value, such as `settings.TRANSPORT_KIT` or `environment`.
    """

    def __init__(self, field: str, problem: str, source: str = "arguments") -> None:
        super().__init__(field, problem, source)  # these args alone rebuild the error when unpickled
        self.field = field
        self.problem = problem
        self.source = source

    def __str__(self) -> str:
        return f"{self.field} ({self.source}): {self.problem}"


class MissingExtra(OptionsError):
    """An option asks for a package that is not installed; the message contains the install line.

    Attributes:
        package: The package that is missing.
        extra: The extra of transport-kit that installs it.
    """

    def __init__(self, field: str, package: str, extra: str, source: str = "arguments") -> None:
        super().__init__(field, f"needs the package {package}: pip install 'transport-kit[{extra}]'", source)
        self.args = (field, package, extra, source)
        self.package = package
        self.extra = extra


class InvalidDsn(TransportKitError, ValueError):
    """A DSN can't be used. The message never contains the DSN, which holds a key.

    Attributes:
        reason: One of `invalid_url`, `invalid_scheme`, `missing_public_key`, `missing_host`,
            `invalid_port`, `missing_project_id`, `invalid_project_id`.
        hint: The change to make, in one sentence.
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
        offset: Byte at which the fault begins; -1 if it concerns the whole envelope.
        detail: The value at fault, and the expected one.
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
    """An envelope can't be encoded so that a receiver would accept it.

    Attributes:
        path: The value at fault, such as `event.extra.order[3]`.
        detail: The fault; never the value itself.
    """

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"can't seal {self.path}: {self.detail}"
