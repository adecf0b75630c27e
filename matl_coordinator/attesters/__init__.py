"""Where a coordinator's evidence comes from: the kernel's interfaces to the hardware, or software.

No machine with such hardware was at hand: ``sev_guest`` and ``tsm`` follow the kernel's
documentation and are tested against its formats only.
"""
