"""What the parts of one runtime share: the store, the clock, the names, the settings; and how far it reaches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from outrider.core.errors import Forbidden
from outrider.core.ledger import Ledger, Views
from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.runtime.bounds import BoundedLedger, Bounds
from outrider.runtime.clock import Clock
from outrider.runtime.glance import Glance
from outrider.runtime.lifecycle import Lifecycle
from outrider.runtime.registry import Registry
from outrider.runtime.signals import Signals
from outrider.runtime.standing import Standing
from outrider.runtime.telemetry import Telemetry, telemetry
from outrider.runtime.trail import Trail
from outrider.runtime.troubles import Troubles
from outrider.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of one open runtime."""

    ledger: Ledger
    clock: Clock
    lifecycle: Lifecycle
    signals: Signals
    glance: Glance
    registry: Registry
    settings: WorkerSettings
    telemetry: Telemetry
    trail: Trail
    standing: Standing = field(default_factory=Standing)
    troubles: Troubles = field(default_factory=Troubles)
    bounds: Bounds | None = None
    """How far it reaches; None for everywhere."""
    beyond: Services | None = None
    """Those without bounds, where there are any: for duties, which are done for all."""

    @property
    def whole(self) -> Services:
        """The services that reach everywhere."""
        return self.beyond or self

    @property
    def organization_id(self) -> str:
        """The organization of what is made without another word."""
        return DEFAULT_ORGANIZATION if self.bounds is None else self.bounds.organization_id

    @property
    def is_operator(self) -> bool:
        """Whether what concerns all organizations may be seen and set."""
        return self.bounds is None or self.bounds.is_operator

    def operating(self, what: str) -> Services:
        """The services that reach everywhere, for an operator. Raises Forbidden for anybody else."""
        if not self.is_operator:
            raise Forbidden(f"{what} of all organizations: that needs an operator, an admin of the default one")
        return self.whole

    def within(self, bounds: Bounds) -> Services:
        """The same, reaching no further than that. Raises Forbidden where that is further than these reach."""
        if self.bounds is not None and not self.bounds.cover(bounds):
            raise Forbidden(f"{bounds.organization_id} is not within {self.bounds.organization_id}, or reaches further")
        ledger = BoundedLedger(self.whole.ledger, bounds)
        return replace(
            self,
            ledger=ledger,
            lifecycle=self.whole.lifecycle.over(ledger),
            glance=Glance(ledger.views),
            bounds=bounds,
            beyond=self.whole,
        )

    @property
    def views(self) -> Views:
        """The reading half of the store."""
        return self.ledger.views

    @classmethod
    def over(cls, ledger: Ledger, clock: Clock, registry: Registry, settings: WorkerSettings) -> Services:
        """Put the collaborators together over one store."""
        told = telemetry()
        return cls(
            ledger,
            clock,
            Lifecycle(ledger, clock, told),
            Signals(ledger, clock),
            Glance(ledger.views),
            registry,
            settings,
            told,
            Trail(ledger, clock),
        )
