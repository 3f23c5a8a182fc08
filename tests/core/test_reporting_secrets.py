"""Secrets: hundreds of them, planted wherever an app may have one; none may be sent."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.timing import SOON
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope import encoder
from transport_kit.reporting import Reporter, RequestInfo, TransportHandler
from transport_kit.testing import FaultServer
from transport_kit.transport.factory import make_transport

#: Names under which apps keep secrets, in the spellings of headers, settings, forms and code.
NAMES = (
    *("password", "passwd", "pwd", "user_password", "PASSWORD", "db-password", "passphrase"),
    *("secret", "client_secret", "SECRET_KEY", "api_key", "apiKey", "X-Api-Key", "private_key"),
    *("access_token", "refreshToken", "csrf_token", "csrfmiddlewaretoken", "XSRF-TOKEN"),
    *("authorization", "Proxy-Authorization", "auth", "jwt", "bearer", "sso_ticket", "samlResponse"),
    *("credentials", "aws_secret_access_key", "sessionid", "PHPSESSID", "session_cookie", "Set-Cookie"),
)

#: Texts of validation errors, databases, commands, protocols and URLs, in which a name is near its value.
PLACES = (
    "1 validation error for Login\npassword\n  short [type=too_short, input_value='{}', input_type=str]",
    "1 validation error for A\nbody.0.api_key\n  bad [type=x, input_value='{}', input_type=str]",
    "1 error for A\n  bad [type=x, input_value={{'n': 'bob', 'pass...rd': '{}'}}, input_type=dict]",
    "[{{'loc': ('body', 'password'), 'msg': 'too short', 'input': '{}', 'ctx': {{'n': 12}}}}]",
    '{{"type": "x", "loc": ["body", "new_password"], "msg": "bad", "input": "{}"}}',
    'violates unique constraint "t"\nDETAIL:  Key (token)=({}) already exists.',
    "DETAIL:  Key (email, token)=(bob@x.example, {}) already exists.",
    "DETAIL:  Key (lower(token::text))=({}) already exists.",
    "DETAIL:  Failing row contains (1, bob, {}, null).",
    "Duplicate entry '{}' for key 'users.api_token'",
    "Violation of UNIQUE KEY constraint 'UQ_token'. Cannot insert. The duplicate key value is ({}).",
    'E11000 duplicate key error index: t_1 dup key: {{ token: "{}" }}',
    "[SQL: INSERT INTO users (name, password) VALUES (?, ?)]\n[parameters: ('bob', '{}')]",
    "INSERT INTO users (name, password) VALUES ('bob', '{}')",
    "CREATE USER bob WITH ENCRYPTED PASSWORD '{}'",
    "ALTER USER 'bob'@'%' IDENTIFIED WITH mysql_native_password BY '{}'",
    "SET PASSWORD FOR 'bob' = PASSWORD('{}')",
    "[(b'host', b'x'), (b'authorization', b'Token {}')]",
    '[["x-api-key", "{}"], ["a", "b"]]',
    "{{b'password': b'{}'}}",
    "{{('password',): '{}'}}",
    "{{'name': 'password', 'value': '{}'}}",
    '{{"value": "{}", "name": "DB_PASSWORD"}}',
    '<input type="password" name="p" value="{}">',
    '<add key="ApiKey" value="{}"/>',
    'Content-Disposition: form-data; name="password"\r\n\r\n{}\r\n--x--',
    "mysql -u root -p{} shop",
    "docker login -u bob -p {} registry.example",
    "Command '['docker', 'login', '-u', 'bob', '-p', '{}']' returned 1",
    "redis-cli -h cache -a {} ping",
    "sshpass -p {} ssh bob@host",
    "curl -u bob:{} https://x.example",
    "mongodump --host db -u bob -p {}",
    "keytool -storepass {} -list",
    "openssl rsa -passin pass:{}",
    "machine host login bob password {}",
    "postgres://bob:pa/{}@db/shop",
    "https://bob:p/{}@host/x",
    "bob:{}@tcp(db:3306)/shop",
    "GET /oauth/callback?code={}&state=abc",
    "https://x.blob.example/c/b?sv=1&sig={}%3D&se=2",
    "https://b.s3.example/x?X-Amz-Signature={}&X-Amz-Date=1",
    "https://hooks.slack.com/services/T000/B000/{}",
    "https://api.telegram.org/bot123456789:AA{}abcdefghijklmnopqrst/sendMessage",
    "Stripe-Signature: t=1,v1={}",
    "-----BEGIN RSA PRIVATE KEY-----\nMII{}\n-----END RSA PRIVATE KEY-----",
    "dbPass = '{}'",
    "login(user='bob', pw='{}')",
    "user_pin: '{}'",
)


class Planter:
    """Makes unique secrets and keeps a list of them."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.planted: dict[str, str] = {}

    def secret(self, where: str) -> str:
        """Return a new secret for this place; it is not recognisable by its form."""
        text = f"Zq7{next(self._numbers):04d}vXw"
        self.planted[text] = where
        return text

    def pairs(self, where: str) -> dict[str, str]:
        """Return one secret under each of the names."""
        return {name: self.secret(f"{where}: {name}") for name in NAMES}

    def texts(self, where: str) -> list[str]:
        """Return texts with secrets that are recognisable by their surroundings only."""
        forms = (
            "postgresql://shop:{}@db.internal:5432/shop",
            "redis://:{}@cache:6379/0",
            "amqps://worker:{}@mq/vhost?heartbeat=5",
            "mysql://root:p#{}@db/x",
            "https://{}@api.example/v1",
            "GET /cart?token={}&page=2",
            "Authorization: Bearer {}",
            "sent 'Authorization': 'Basic {}==' to it",
            "curl -H 'X-Api-Key: {}' https://x.example",
            "login failed, password={}, user=bob",
            'body was {{"client_secret": "{}", "n": 1}}',
            "Cookie: theme=dark; sessionid={}",
            "used bearer {} for it",
            "token eyJhbGciOiJIUzI1NiJ9.{}.c2ln",
            "paid with sk_live_{}abc",
            "password: {}",
            "error = password={}",
            "<QueryDict: {{'password': ['{}'], 'n': ['1']}}>",
            "env was {{'AUTH': {{'user': '{}'}}}}",
            "sent {{'token': b'{}'}}",
            'body: {{\\"client_secret\\": \\"{}\\", \\"n\\": 1}}',
            "SECRET_KEY = '{}'",
            "api_key: {}",
            "PASSWORD: '{}'",
            "headers['X-Api-Key'] = '{}'",
            "mysqldump --password {} shop",
            "mysqldump --password '{} x' shop",
            "Command '['mysqldump', '--password', '{}', 'shop']' failed",
            "<soap:Body><wsse:Password Type='text'>{}</wsse:Password><n>1</n></soap:Body>",
        )
        return [form.format(self.secret(f"{where}: {form}")) for form in (*forms, *PLACES)]


def token(secret: str) -> str:
    """A web token, recognisable by its form, that contains the secret."""
    return f"eyJhbGciOiJIUzI1NiJ9.{secret}.c2ln"


class Setting(enum.Enum):
    """Settings of an app."""

    API_KEY = 1


@dataclasses.dataclass
class Account:
    """A user record of an app."""

    name: str
    password: str
    pin: str = dataclasses.field(repr=False)


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def fail(plant: Planter) -> None:
    """Raise with secrets in variables, arguments, notes and causes."""
    password = plant.secret("a variable")
    command = ["mysqldump", "--user", "shop", "--password", plant.secret("a command"), "--api-key", ""]
    command[-1] = plant.secret("the last of a command")
    settings = {
        "DATABASES": {"default": plant.pairs("nested variables"), "list": [("token", plant.secret("pair"))]}
    }
    texts = plant.texts("texts in variables")
    environ = {
        "QUERY_STRING": f"code={plant.secret('QUERY_STRING')}&state=abc",
        "REQUEST_URI": f"/callback?code={plant.secret('REQUEST_URI')}&state=abc",
        "RAW_URI": f"/bot123456789:AA{plant.secret('RAW_URI')}abcdefghijklmnopqrst/send",
    }
    odd_keys: dict[object, str] = {
        b"password": plant.secret("a key of bytes"),
        ("a", "token"): plant.secret("a tuple as key"),
    }
    odd_keys[Setting.API_KEY] = plant.secret("a member of an Enum as key")
    headers = [(b"authorization", plant.secret("a header of bytes").encode()), (b"host", b"x")]
    described = [
        {"name": "password", "value": plant.secret("a described field")},
        {"loc": ("body", "password"), "input": plant.secret("an input"), "type": "too_short"},
        {"Key": "api_key", "Value": plant.secret("a described tag")},
    ]
    arguments = ["/usr/bin/mysql", "-uroot", f"-p{plant.secret('an attached argument')}", "shop"]
    more_arguments = ["docker", "login", "-u", "bob", "-p", plant.secret("an argument"), "registry.example"]
    otp = plant.secret("a short name")
    assert all((environ, odd_keys, headers, described, arguments, more_arguments, otp))
    bob = Account("bob", plant.secret("a field"), plant.secret("a field without repr"))
    assert all((password, command, settings, texts, bob))
    try:
        try:
            raise LookupError("password", plant.secret("an argument after its name"))
        except LookupError as first:
            raise LookupError(*plant.texts("arguments")) from first
    except LookupError as cause:
        error = ValueError("\n".join(plant.texts("the message")))
        for text in plant.texts("notes"):
            error.add_note(text)
        raise error from cause


def measure(plant: Planter, reporter: Reporter) -> None:
    """Make a span with secrets, in its own function, so that no frame of a later exception has them."""
    with reporter.span("db", plant.texts("a description")[0]) as span:
        for name, value in plant.pairs("span data").items():
            span.set_data(name, value)


def everything(plant: Planter, reporter: Reporter) -> None:
    """A request with secrets everywhere."""
    headers = (
        *plant.pairs("headers").items(),
        (
            "Cookie",
            urlencode(
                {**plant.pairs("cookie header"), "c": token(plant.secret("a token in the header"))}
            ).replace("&", "; "),
        ),
        ("Referer", f"https://shop.example/?{urlencode({'access_token': plant.secret('referer')})}"),
        ("Content-Type", "application/json"),
    )
    info = RequestInfo(
        method="POST",
        url=f"https://bob:{plant.secret('url')}@shop.example/cart",
        query_string=urlencode({**plant.pairs("query"), "q": token(plant.secret("a token in the query"))}),
        headers=headers,
        cookies={**plant.pairs("cookies"), "c": token(plant.secret("a token in a cookie"))},
        data=encoder.dumps({"form": {"deep": [plant.pairs("JSON body")]}}),
    )
    logger = logging.getLogger("shop.secrets")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = TransportHandler(reporter, event_level=logging.ERROR)
    logger.addHandler(handler)
    try:
        with reporter.request(lambda: info, named=lambda: ("/cart", "route")):
            reporter.add_breadcrumb(data=plant.pairs("breadcrumb data"))
            for text in plant.texts("breadcrumbs"):
                reporter.add_breadcrumb(text)
            measure(plant, reporter)
            for text in plant.texts("log records"):
                logger.info(text)
                logger.error("failed: %s", text)
                logger.error(text.replace("%", "%%") + " for %s", "bob")
            logger.info("%(api_key)s", {"api_key": plant.secret("a parameter")})
            logger.error("extra", extra=plant.pairs("extra of a record"))
            for text in plant.texts("messages"):
                reporter.capture_message(text)
            try:
                fail(plant)
            except ValueError as error:
                reporter.capture_exception(error)
            form = RequestInfo(
                headers=(("Content-Type", "application/x-www-form-urlencoded"),),
                data=urlencode(plant.pairs("form body")),
            )
            reporter.capture_exception(KeyError("x"), request=form)
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("pii", [False, True])
def test_no_planted_secret_is_on_the_wire(server: FaultServer, pii: bool) -> None:
    """Over seven hundred, through every way into an envelope; checks the bytes that the server received."""
    plant = Planter()
    with make_transport(server.dsn) as transport:
        reporter = Reporter(
            transport,
            ReporterOptions(traces_sample_rate=1.0, release="shop@1", send_default_pii=pii),
        )
        everything(plant, reporter)
        assert transport.flush(timeout=SOON)
    wire = b"\n".join(request.body for request in server.requests)
    assert len(plant.planted) >= 700
    types = {item.type for request in server.requests for item in request.envelope}
    assert {"event", "transaction", "sessions", "log"} <= types
    leaked = sorted({where for secret, where in plant.planted.items() if secret.encode() in wire})
    assert leaked == []
    # The names stay: whoever reads the event sees that there was something.
    assert wire.count(b"[Filtered]") > 200


def test_the_key_of_the_dsn_is_in_the_trace_header_only(server: FaultServer) -> None:
    """The protocol requires the public key there; it must be nowhere else."""
    with make_transport(server.dsn) as transport:
        key = transport.dsn.public_key if transport.dsn else ""
        reporter = Reporter(transport, ReporterOptions(detect_release=False))
        dsn: Any = server.dsn
        try:
            raise ValueError(f"can't reach {dsn}")
        except ValueError:
            reporter.capture_exception()
        assert transport.flush(timeout=SOON)
    (request,) = server.requests
    header, _, rest = request.body.partition(b"\n")
    assert encoder.loads(header)["trace"]["public_key"] == key
    assert key.encode() not in rest
