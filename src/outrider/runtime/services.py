"""What the parts of one runtime share: the store, the clock, the names, the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.core.ledger import Ledger, Views
from outrider.runtime.clock import Clock
from outrider.runtime.glance import Glance
from outrider.runtime.lifecycle import Lifecycle
from outrider.runtime.registry import Registry
from outrider.runtime.signals import Signals
from outrider.runtime.standing import Standing
from outrider.runtime.telemetry import Telemetry, telemetry
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
    standing: Standing = field(default_factory=Standing)

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
        )
