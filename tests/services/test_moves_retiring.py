"""When a worker that isn't wanted any more is told to go."""

from tests.services.town import WIRE, Town

from key_service.moves import HEARD, LINGER, SETTLED


def test_nobody_goes_while_tun_and_conn_may_still_send_there() -> None:
    """The one of the lower number is left first, and waits for the higher; both until their going has been heard of."""
    town = Town(40, 3)
    town.silent |= {key for key in town.fars if town.routes[key] == 2}
    town.scale(1)
    town.run(SETTLED + LINGER + 1)
    assert 1 not in town.routes.values()
    assert (town.count, town.told_to_go) == (3, [])
    while town.count > 1:
        town.run(WIRE)
    heard = town.now
    while not town.told_to_go:
        town.run(WIRE)
    assert HEARD - 2 * WIRE <= town.now - heard <= HEARD + 2 * WIRE
    assert sorted(town.told_to_go) == [1, 2]
