"""The defaults, in one place, each with its unit; a program overrides them with settings of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a value may be, in bytes unless said otherwise. Over it: refused, or cut with a mark."""

    output_tail: int = 256 * KIB
    result: int = 64 * KIB
    summary: int = 2048
    """Characters."""
    message: int = 64 * KIB
    spec: int = 256 * KIB
    file: int = MIB
    """Also what a step returns."""
    question: int = 256 * KIB
    """What is asked with its details, schema and default; and each answer."""
    name: int = 512
    """Characters of a name: of a step, an artifact, an idempotency key."""
    detail: int = 2048
    """Characters."""
    process_output: int = 8 * MIB
    """Of a command's output, on disk until a worker has read it."""
    webhook: int = 64 * KIB
    """What one webhook says. Over it the longest of its fields are left out, with a mark."""
    webhook_answer: int = 64 * KIB
    """How much of what its receiver answers is read; of that the head is kept."""


@dataclass(frozen=True, slots=True)
class DelegationLimits:
    """How far agents may go that start others, in one delegation tree; more is refused to them."""

    depth: int = 2
    """How many agents stand below the first, one below the other."""
    live: int = 16
    """How many tasks live at once."""
    total: int = 200
    detached_live: int = 8
    """How many of those that live are detached: nobody's end stops them."""
    detached_total: int = 50
    foreground_wait: float = 300.0
    """How many seconds an agent waits for one that it starts in the foreground, or for tasks unless it says."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """The lease of a worker, in seconds.

    Renewed every `renew`; a worker that could not renew cancels its own work after `cancel`, ends its process
    after `end`, and is taken for lost by others after `lost`.
    """

    renew: float = 2.0
    cancel: float = 6.0
    end: float = 8.0
    lost: float = 10.0


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """How webhooks are sent, and where to. Spans in seconds."""

    deliver: bool = True
    """Whether this process follows the log and sends; others have to, where it does not."""
    allow: tuple[str, ...] = ()
    """What may be reached though it is no public address: addresses, networks (`10.0.0.0/8`), host names, `*.name`."""
    ports: tuple[int, ...] = (80, 443)
    """The ports of other hosts."""
    public_url: str | None = None
    """Where people reach the server, `https://...`: what links to answer with begin with. Without it there are none."""
    link_valid: float = 86_400.0
    """How long such a link answers."""
    connect_timeout: float = 5.0
    send_timeout: float = 15.0
    """From the look for the address to the end of the answer."""
    at_once: int = 4
    """How many are sent to one endpoint at once; they are begun in order."""
    endpoints_at_once: int = 64
    """How many endpoints one process sends to at once, a quarter of them of one organization."""
    first_retry: float = 5.0
    """How long after a failure it is tried again, at most; twice that after the second, and so on."""
    longest_retry: float = 3600.0
    retry_for: float = 86_400.0
    """After how long it is not tried again, and lies with the dead letters."""
    claim: float = 30.0
    """How long a process keeps an endpoint to itself; when it dies, others go on after that."""
    takeover: float = 5.0
    """How late webhooks are when processes other than the one on duty help out."""
    progress_every: float = 1.0
    """The shortest time between two webhooks of one task's progress."""
    disable_after: float = 2 * 86_400.0
    """How long nothing but failures disables an endpoint."""
    disable_failures: int = 10
    """And how many of them there are at least."""
    history: int = 100
    """How many deliveries that were made are kept of each endpoint."""
    dead_letters: int = 1000
    """How many that were given up."""
    history_age: float = 30 * 86_400.0
    """How long both are kept at most, of endpoints that are no task's."""
    overlap: float = 86_400.0
    """How long the old secret signs beside a new one."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker works. Spans in seconds."""

    concurrency: int = 150
    """How many tasks one worker holds at once: more than it claims at once, so that it can claim while it works."""
    threads: int = 32
    """How many synchronous tools run at once."""
    lease: LeaseTimes = LeaseTimes()
    park_grace: float = 1.0
    drain_timeout: float = 30.0
    drain_grace: float = 5.0
    """How long after that what did not finish has to stop."""
    stall_named: float = 1.0
    stall_limit: float = 30.0
    recovery_interval: float = 0.25
    """How often a worker looks whether others are still alive."""
    progress_interval: float = 0.25
    """The shortest time between two progress events of one task."""
    output_interval: float = 0.02
    """The longest time that output waits before it is written."""
    process_adopt_limit: float = 300.0
    """How long a command runs on without a worker before its supervisor ends it."""
    process_linger: float = 1.0
    """How long what a command left running has to end after it, and again after TERM."""
    retention: float | None = 30 * 86_400.0
    """How long ended tasks are kept; None for ever. Of several workers the one that is there longest decides."""
    retention_batch: int = 1000
    """How many tasks one transaction deletes at most."""
    archive: str | None = None
    """Where archived sessions are: the URL of a folder (`file:///…`) or a bucket (`s3://…`, `gs://…`, `az://…`)."""
    retention_interval: float = 60.0
    """How often a worker looks for some."""
    index_interval: float = 1.0
    """How often a worker brings the index of tasks up to date. What it lacks is looked at by whoever lists tasks."""
    iterations: int = 50
    """How many model calls an agent may make, unless it or its task says."""
    model_tries: int = 4
    """How often a model call is made, where its provider fails, until the attempt fails."""
    model_backoff: float = 1.0
    """How long it is waited before the second, at most; twice that before the third, and so on, up to a minute."""
    model_answer_tokens: int = 4096
    """How many tokens an answer may have, in a task with a budget or of a model with a rate, unless settings say."""
    breaker_failures: int = 5
    """After how many failures in a row, of all processes, a provider is not asked for a while."""
    breaker_rest: float = 30.0
    """For how long; then one call tries whether it works again."""
    approval_deadline: float = 900.0
    """How long an approval is waited for before it counts as denied."""
    approval_nudge: float = 60.0
    """How long before that the session is reminded."""
    approval_valid: float = 3600.0
    """How long an approval holds for a call that has not been made: then it is asked for again."""
    connection_deadline: float = 3600.0
    """How long a task waits for a connection that is missing when it begins, before it fails."""
    question_deadline: float = 7 * 86_400.0
    """How long a question of an agent to who started it waits before its task fails."""
    doubt_deadline: float = 3600.0
    """How long a question about a `once` step in doubt waits before the task fails."""
    inbox_lease: float = 60.0
    """How long what an outside agent receives is kept for it, unless it says."""
    delegation: DelegationLimits = DelegationLimits()
    webhooks: WebhookSettings = WebhookSettings()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a server tells who follows. Spans in seconds."""

    silence: float = 15.0
    """After how long without news a stream says that it is still there."""
    stall_limit: float = 30.0
    """How long a client may read nothing of what was sent to it, before it is cut. Goes for all answers."""
    retry: float = 1.0
    """After how long a client should come again that was cut."""
    most: int = 5000
    """How many streams one process has open at once."""


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """Whose tokens are accepted (OIDC, JWT), and what their claims mean. Spans in seconds, sizes in bytes."""

    issuer: str
    """Who signs them, to the letter: the claim `iss`."""
    audience: str
    """Whom they are for: one of the claim `aud`."""
    jwks: str | None = None
    """Where its keys are: an `https` URL, or the path of a file; None asks the issuer's discovery document."""
    organization_claim: str = "organization"
    """Which claim names the organization; with dots it is one within objects."""
    organizations: Mapping[str, str] = field(default_factory=dict)
    """The organization for a value of that claim; without any, the value is the id of the organization."""
    scopes_claim: str = "scope"
    """Which claim has the scopes: a list, or text with blanks between them."""
    scopes: Mapping[str, str] = field(
        default_factory=lambda: {f"outrider:{scope}": scope for scope in ("read", "submit", "operate", "admin")}
    )
    """The scope for a value of that claim; other values mean nothing."""
    algorithms: tuple[str, ...] = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
    leeway: float = 30.0
    """By how much its clock and ours may differ."""
    token_size: int = 16 * KIB
    """How large a token may be."""
    keys_age: float = 600.0
    """After how long its keys are fetched again."""
    keys_rest: float = 10.0
    """How long it is left alone at least between two times; also where a token names a key that nobody knows."""
    keys_timeout: float = 5.0
    """How long it has to answer."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who is admitted, and how often. Spans in seconds."""

    issuer: IssuerSettings | None = None
    """Whose tokens are accepted beside keys."""
    rate: float = 2000.0
    """How many requests a second a key or token may make of one server process."""
    burst: int = 4000
    """How many of them at once."""
    failures: int = 30
    """How many refused tokens a minute an address may send before it is told to wait."""
    key_cache: float = 2.0
    """How long a key is believed to be what it was: after so long it is revoked everywhere."""
    key_used: float = 300.0
    """How often the use of a key is written down."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How the HTTP API is served. Spans in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8321
    body: int = 8 * MIB
    """How large the body of a request may be."""
    bodies: int = 256 * MIB
    """How large the bodies of all requests under way may be together."""
    header: int = 64 * KIB
    """How large its head may be: the request line and all headers."""
    head_timeout: float = 10.0
    """How long a client may take to send the head of a request."""
    body_timeout: float = 30.0
    """How long it may take to send the body."""
    keep_alive: float = 60.0
    """How long a connection is kept on which nothing is asked."""
    poll: float = 60.0
    """The longest that a request waits for news; who wants to wait longer asks again."""
    shutdown_timeout: float = 10.0
    """How long requests under way have when the server is told to stop; what is left is cut off."""
    origins: tuple[str, ...] = ()
    """Web pages of these origins may use the API (CORS): `https://app.example.org`, or `*` for any."""
    hosts: tuple[str, ...] = ()
    """The names by which it is asked for where nobody is asked who they are, beside those of this machine."""
    streams: StreamSettings = StreamSettings()
    access: AccessSettings | None = None
    """Who is admitted; None admits everybody, and serves this machine only."""


@dataclass(frozen=True, slots=True)
class LocalModelSettings:
    """The `local` model and its server, one for each user of a machine. Spans in seconds."""

    context_tokens: int = 2048
    """What one request may hold, its answer included. The server's memory grows with it."""
    answer_tokens: int = 400
    slots: int = 2
    """How many requests the server answers at once; the others wait."""
    max_calls: int = 8
    """How many tools it may call for one prompt until it has to answer: a small model finds no end by itself."""
    idle_exit: float = 300.0
    """After how long without a request the server ends itself."""
    start_timeout: float = 60.0


CANCEL_GRACE = timedelta(seconds=10)
RELEASE_FAILURES = 100
RELEASE_TIMEOUT = timedelta(minutes=5)
EXTERNAL_LEASE = timedelta(seconds=60)
DEFAULT_DATABASE = ".outrider/outrider.db"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How `Client` speaks to a server. Spans in seconds."""

    patience: float = 60.0
    """How long it waits for a server from its first failure on, and asks again where that is safe; 0 for once."""
    connect_timeout: float = 5.0
    """How long one attempt to connect may take."""
    answer_timeout: float = 30.0
    """How long an answer may take, beyond what the request itself waits for."""
    poll_time: float = 30.0
    """How long one request waits for news; then the next one does."""
    stream_silence: float = 45.0
    """How long a stream may say nothing, not even that it lives, until it is taken for dead and resumed."""
    log_trouble: bool = True
    """Whether the log tells when a server begins to be in trouble, and when that is over."""
