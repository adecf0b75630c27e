"""Where the coordinator may be: several addresses, of which one at a time is called.

Nothing here calls anybody, or knows who leads: that shows in who answers.
"""

from matl_common.configuration import addresses_of


class Addresses:
    """Goes on to the next address once the one in use has failed."""

    def __init__(self, text: str) -> None:
        """Begin with the first of ``host:port, host:port, …``."""
        self._all = addresses_of(text)
        self._at = 0

    @property
    def current(self) -> str:
        """The one to call."""
        return self._all[self._at]

    @property
    def are_several(self) -> bool:
        """Whether there is another one to go on to."""
        return len(self._all) > 1

    def failed(self, address: str) -> None:
        """Go on from ``address``, unless somebody else who called it has done so already."""
        if address == self.current:
            self._at = (self._at + 1) % len(self._all)

    def use(self, address: str) -> None:
        """Stay with this one of them."""
        self._at = self._all.index(address)
