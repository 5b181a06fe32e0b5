"""How much an agent will still take on one stream."""

from dataclasses import dataclass


@dataclass(slots=True)
class Window:
    """Counts offers against credit. Credit is a running total, so a repeated or late message changes nothing."""

    granted_total: int = 0
    sent_total: int = 0

    @property
    def room(self) -> int:
        """How many more offers may be sent now."""
        return self.granted_total - self.sent_total

    def grant(self, granted_total: int) -> bool:
        """Raise the credit to a total; answer whether there is more room than before."""
        if granted_total <= self.granted_total:
            return False
        self.granted_total = granted_total
        return True

    def spend(self, offers: int) -> None:
        """Count offers that are about to be sent. There must be room for them."""
        assert 0 <= offers <= self.room, "more offers than credit"
        self.sent_total += offers
