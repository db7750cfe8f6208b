"""The routes of organizations: for operators, but that everybody may see their own."""

from __future__ import annotations

from pydantic import Field
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import FOR_OPERATORS, Administering
from outrider.api.forms import Form
from outrider.api.paging import After, Limit, Page, cursor_of
from outrider.api.problems import responses
from outrider.api.routing import noun
from outrider.runtime.records import OrganizationRecord

router = noun("organizations")


class NewOrganizationForm(Form):
    """An organization to be made."""

    name: str
    id: str | None = Field(default=None, description="An id of your own.")


@router.post(
    "/organizations",
    status_code=201,
    response_model=OrganizationRecord,
    responses=responses(409),
    openapi_extra=FOR_OPERATORS,
)
async def create_organization(runtime: Administering, form: NewOrganizationForm) -> Response:
    """Make an organization."""
    return wire.record(await runtime.organizations.create(form.name, id=form.id), 201)


@router.get("/organizations", response_model=Page[OrganizationRecord])
async def list_organizations(runtime: Administering, after: After = None, limit: Limit = 100) -> Response:
    """List organizations in the order of their ids."""
    found = await runtime.organizations.list(after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit))


@router.get("/organizations/{organization_id}", response_model=OrganizationRecord, responses=responses(404))
async def get_organization(runtime: Administering, organization_id: str) -> Response:
    """Get an organization."""
    return wire.record(await runtime.organizations.get(organization_id))


@router.delete(
    "/organizations/{organization_id}", status_code=204, responses=responses(404, 409), openapi_extra=FOR_OPERATORS
)
async def delete_organization(runtime: Administering, organization_id: str) -> Response:
    """Delete an organization that has no session left, with all of it but its audit log. Its id is not given again."""
    await runtime.organizations.delete(organization_id)
    return Response(status_code=204)


@router.post(
    "/organizations/{organization_id}/suspend",
    response_model=OrganizationRecord,
    responses=responses(404, 409),
    openapi_extra=FOR_OPERATORS,
)
async def suspend_organization(runtime: Administering, organization_id: str) -> Response:
    """Admit nobody to an organization until it is resumed. What runs in it runs on."""
    return wire.record(await runtime.organizations.suspend(organization_id))


@router.post(
    "/organizations/{organization_id}/resume",
    response_model=OrganizationRecord,
    responses=responses(404, 409),
    openapi_extra=FOR_OPERATORS,
)
async def resume_organization(runtime: Administering, organization_id: str) -> Response:
    """Admit those again whose keys and tokens are good."""
    return wire.record(await runtime.organizations.resume(organization_id))
