"""Tells whether traffic can flow, as status-service's /readyz does, for the container's health check and systemd."""

from stagewire.control import query
from stagewire.environment import Environment
from stagewire_cli.failures import NotUp


def why_not(environment: Environment) -> list[str]:
    """Returns why no traffic can flow, a line for each reason. Raises NotUp and OtherVersion."""
    if not environment.run.exists():
        raise NotUp(environment.interface)
    counted = query.status_service(environment)
    if counted is not None:
        return list(counted.unready)
    answer = query.key_service(environment)  # without status-service the tunnel works on
    if answer is None:
        return ["neither status-service nor key-service answers"]
    if answer.link_up is False:
        return ["the link is down"]
    return [f"waits for {each}" for each in answer.waiting_for]
