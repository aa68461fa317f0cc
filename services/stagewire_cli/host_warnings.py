"""Warns of what host-service could not do for a gateway, once its file is in force."""

from collections.abc import Callable

from stagewire.config import InterfaceConfig
from stagewire.environment import Environment
from stagewire_cli import legacy_rules, taken_ports


def say(environment: Environment, interface: InterfaceConfig, warn: Callable[[str], None]) -> None:
    """Says what keeps packets of peers from passing; nothing for an interface that forwards none."""
    forwards = interface.access.forwards or any(peer.access.forwards for peer in interface.peers)
    if interface.exit == "off" and not forwards:
        return
    from stagewire.control import query  # slow to import, which most starts avoid

    answer = query.key_service(environment)
    for warning in answer.host.warnings if answer is not None and answer.host is not None else ():
        warn(warning)
    for warning in taken_ports.warnings(taken_ports.forwards(interface)):
        warn(warning)
    for warning in legacy_rules.warnings(environment.interface, interface):
        warn(warning)
