"""Who may use a service, and what they did: `keys`, `organizations`, `audit`, `secrets`.

Whoever can open the database is its operator: on its machine the first key is made. What is changed there is in the
audit log too, under the name by which the system knows who sits there; what a server is asked, it records itself.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from outrider.cli.arguments import environment
from outrider.cli.database import Opened, is_here, open_runtime
from outrider.cli.exits import OK, UNSOUND, UsageError
from outrider.cli.terminal import Screen, on_one_line
from outrider.core.wording import counted
from outrider.settings import AccessSettings, IssuerSettings

if TYPE_CHECKING:
    from outrider.runtime.records import ApiKeyRecord, AuditRecord, OrganizationRecord, Record


async def keys(arguments: Namespace, screen: Screen) -> int:
    """Make, list, revoke and rotate API keys."""
    from outrider.cli.starting import user_name

    action, named = arguments.action, arguments.key
    if (named is None) != (action in ("create", "list")):
        raise UsageError(f"{action} takes no KEY" if named else f"which key? outrider keys {action} KEY")
    if action == "create" and not (arguments.scope or arguments.admin):
        raise UsageError("what for? --scope read, submit or operate, or --admin")
    async with open_runtime(arguments, create=action == "create") as runtime:
        if action == "list":
            for each in await runtime.keys.list(organization_id=arguments.organization, limit=1000):
                _show(each, _key_line(each), screen)
            return OK
        if action == "revoke":
            revoked = await runtime.keys.revoke(named)
            await _record(runtime, "revoke_key", revoked.organization_id, {"id": revoked.id})
            _show(revoked, f"{revoked.id} is good no more, from within seconds", screen)
            return OK
        if action == "create":
            made = await runtime.keys.create(
                arguments.name or user_name() or "operator",
                scopes=["admin"] if arguments.admin else arguments.scope,
                session_id=arguments.session,
                expires=arguments.expires,
                organization_id=arguments.organization,
                by=user_name(),
            )
        else:
            made = await runtime.keys.rotate(named, overlap=arguments.overlap)
        await _record(runtime, f"{action}_key", made.organization_id, {"id": made.id})
    _show(made, made.token, screen)
    screen.note(f"this is the token of {made.id}; it is shown this once, and nobody can read it again")
    return OK


async def organizations(arguments: Namespace, screen: Screen) -> int:
    """Make, list, suspend, resume and delete organizations."""
    action, named = arguments.action, arguments.organization
    if (named is None) != (action == "list"):
        raise UsageError("list takes no ORGANIZATION" if named else f"which? outrider organizations {action} NAME")
    if arguments.id is not None and action != "create":
        raise UsageError("--id is the id of an organization that is made")
    async with open_runtime(arguments, create=action == "create") as runtime:
        found = runtime.organizations
        if action == "list":
            for each in await found.list(limit=1000):
                _show(each, _organization_line(each), screen)
            return OK
        if action == "delete":
            await found.delete(named)
            await _record(runtime, "delete_organization", named)
            screen.note(f"{named} is deleted, with its keys; its audit log stays")
            return OK
        if action == "create":
            changed = await found.create(named, id=arguments.id)
        else:
            changed = await (found.suspend(named) if action == "suspend" else found.resume(named))
        await _record(runtime, f"{action}_organization", changed.id, {"id": changed.id})
    _show(changed, _organization_line(changed), screen)
    return OK


async def audit(arguments: Namespace, screen: Screen) -> int:
    """List an audit log, verify that it is whole, delete what is old of it."""
    owner, action = arguments.organization, arguments.action
    if action != "verify" and arguments.expect_head is not None:
        raise UsageError("--expect-head is for verify")
    if action == "prune" and arguments.older_than is None:
        raise UsageError("how old? --older-than 365d")
    async with open_runtime(arguments) as runtime:
        if action == "list":
            for entry in await runtime.audit.list(organization_id=owner, limit=arguments.limit):
                _show(entry, _entry_line(entry), screen)
            return OK
        if action == "prune":
            await _record(runtime, "prune_audit", owner, {"older_than": f"{arguments.older_than}"})
            gone = await runtime.audit.prune(arguments.older_than, organization_id=owner)
            if screen.as_json:
                screen.data({"entries": gone})
            else:
                screen.note(f"{counted(gone, 'record')} deleted")
            return OK
        verdict = await runtime.audit.verify(organization_id=owner, expect_head=arguments.expect_head)
    if screen.as_json:
        screen.record(verdict)
    elif verdict.is_whole:
        screen.line(verdict.head)
        screen.note(f"{counted(verdict.entries, 'record')} of {verdict.organization_id}, all as they were")
    else:
        screen.line(f"entry {verdict.broken_at}: {verdict.reason}")
    return OK if verdict.is_whole else UNSOUND


async def secrets(arguments: Namespace, screen: Screen) -> int:
    """Seal the secrets in the database anew."""
    async with open_runtime(arguments, create=True) as runtime:
        rotated = await runtime.secrets.rotate()
        await _record(runtime, "rotate_secrets", None, {"key_id": rotated.key_id})
    _show(rotated, f"{rotated.key_id} seals from now on; {counted(rotated.sealed, 'secret')} sealed anew", screen)
    if rotated.unused:
        screen.note(f"no longer needed: {', '.join(rotated.unused)}")
    return OK


def access_of(arguments: Namespace) -> AccessSettings | None:
    """Who is admitted to a server that is started so; None for everybody on this machine. Raises UsageError."""
    issuer = environment("OUTRIDER_OIDC_ISSUER")
    if not (arguments.auth or environment("OUTRIDER_AUTH") or issuer):
        return None
    settings = AccessSettings() if arguments.rate is None else AccessSettings(rate=arguments.rate, burst=arguments.rate)
    if issuer is None:
        return settings
    audience = environment("OUTRIDER_OIDC_AUDIENCE")
    if audience is None:
        raise UsageError("OUTRIDER_OIDC_ISSUER needs OUTRIDER_OIDC_AUDIENCE, whom its tokens are for")
    named = {
        "jwks": environment("OUTRIDER_OIDC_JWKS"),
        "organization_claim": environment("OUTRIDER_OIDC_ORGANIZATION_CLAIM"),
        "scopes_claim": environment("OUTRIDER_OIDC_SCOPES_CLAIM"),
        "organizations": _pairs("OUTRIDER_OIDC_ORGANIZATIONS"),
        "scopes": _pairs("OUTRIDER_OIDC_SCOPES"),
    }
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    return replace(settings, issuer=replace(IssuerSettings(issuer, audience), **given))


def _pairs(variable: str) -> Mapping[str, str] | None:
    """`VALUE=MEANING`, with commas between them."""
    told = environment(variable)
    if told is None:
        return None
    found = [part.strip().rpartition("=") for part in told.split(",") if part.strip()]
    if not all(value and meaning for value, _, meaning in found):
        raise UsageError(f"{variable} is VALUE=MEANING, with commas between them, not {told!r:.100}")
    return {value: meaning for value, _, meaning in found}


async def _record(runtime: Opened, action: str, owner: str | None, targets: Mapping[str, str] | None = None) -> None:
    """Write down what was done here, in the log of the organization that it was done to; a server has it already."""
    from outrider.cli.starting import user_name

    if is_here(runtime):
        actor = {"name": user_name() or "unknown", "via": "command line"}
        await runtime.audit.record(action, actor=actor, targets=targets, organization_id=owner)


def _show(record: Record, line: str, screen: Screen) -> None:
    if screen.as_json:
        screen.record(record)
    else:
        screen.line(on_one_line(line))


def _key_line(key: ApiKeyRecord) -> str:
    state = "revoked" if key.revoked_at else "active" if key.is_active else "expired"
    where = f"{key.organization_id} {key.session_id}" if key.session_id else key.organization_id
    used = f"used {_moment(key.used_at)}" if key.used_at else "never used"
    until = f", until {_moment(key.expires_at)}" if key.expires_at else ""
    return f"{key.id}  {key.name}  {','.join(key.scopes)}  {where}  {state}{until}, {used}"


def _organization_line(organization: OrganizationRecord) -> str:
    since = f"  suspended since {_moment(organization.suspended_at)}" if organization.suspended_at else ""
    return f"{organization.id}  {organization.name}{since}"


def _entry_line(entry: AuditRecord) -> str:
    who = entry.actor.get("name") or entry.actor.get("subject") or entry.actor.get("address") or "somebody"
    which = " ".join(f"{name}={value}" for name, value in entry.targets.items())
    via = entry.actor.get("via")
    return f"{entry.number}  {_moment(entry.at)}  {who} ({via})  {entry.action}  {which}  {entry.outcome}"


def _moment(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"
