"""Names the nftables tables of an interface."""

import re
from typing import Final

PREFIX: Final = "stagewire-"


def table_of(interface: str) -> str:
    """Returns the name of the table for default routes. Characters that nft refuses become their codes."""
    return PREFIX + re.sub(r"[^A-Za-z0-9._-]", lambda found: f"/{ord(found[0]):x}", interface)


def gateway_table_of(interface: str) -> str:
    """Returns the name of the table for packets of peers. No code of `table_of` begins with its last letters."""
    return f"{table_of(interface)}/gateway"
