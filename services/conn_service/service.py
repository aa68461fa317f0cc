"""Passes datagrams between the UDP sockets and the other stages: `Inbound` and `Outbound`, as key-service says."""

from dataclasses import replace
from typing import assert_never

from conn_service import udp
from conn_service.egress import Egress
from conn_service.inbound import Inbound
from conn_service.kernel import Kernel
from conn_service.nesting import Nesting
from conn_service.outbound import Outbound
from stagewire.control.chains import Chain, ChainsChanged
from stagewire.control.confirm import Confirm, Confirmed
from stagewire.control.messages import (
    ConnSettings,
    Hello,
    LiveSessions,
    SnapshotEnd,
    ToConn,
    Welcome,
)
from stagewire.control.socket_door import TUNNEL, SocketsTaker
from stagewire.loop import boot_time
from stagewire.pipe.names import SOCKETS
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage


class ConnService:
    """Serves the UDP side of one interface."""

    def __init__(self, stage: Stage, kernel: Kernel) -> None:
        self._stage = stage
        self._kernel = kernel
        self._settings: ConnSettings | None = None
        self._version: int | None = None
        """Version of a whole snapshot that isn't yet in force here; None without."""
        self._given: udp.Sockets | None = None
        self._inbound, self._outbound = Inbound(stage, kernel), Outbound(stage, kernel.trains)

    def set_up(self) -> None:
        """Opens the pipes. Takes the sockets that the holder before us handed down, and later those of host-service."""
        stage = self._stage
        self._line = ControlLine(stage, self)
        self._egress = Egress(stage.loop, stage.environment.interface, self._on_routes)
        self._nesting = Nesting(self._egress, self._line.say, self._outbound.send_decided)
        self._inbound.set_up()
        self._outbound.set_up(self._inbound.sent, self._line.say, self._nesting.wait)
        inherited: dict[str, int] = {name: stage.inherited.pop(name) for name in TUNNEL if name in stage.inherited}
        if inherited:
            self._on_given(inherited, boot_time())
        self._line.recall(boot_time())
        path = stage.pipes.path(SOCKETS)
        SocketsTaker(stage.loop, path, lambda: self._given.descriptors if self._given else {}, self._on_given)

    def hello(self) -> list[Hello | LiveSessions]:
        return [replace(self._stage.hello(), kernel=self._kernel.said)]

    def on_control(self, message: ToConn, now: float) -> None:
        match message:
            case Welcome():
                self._version = None
                self._nesting.start_anew()
                self._look_anew()
            case Chain():
                self._nesting.on_chain(message, now)
            case ChainsChanged():
                self._nesting.forget_chains()
                self._look_anew()
            case ConnSettings():
                self._configure(message)
                self._begin()
            case SnapshotEnd(version=version):
                self._version = version
                self._begin()
            case Confirm(number=number):
                self._line.say(Confirmed(number))
            case _:
                assert_never(message)

    def _look_anew(self) -> None:
        if self._given is not None:
            self._given.routes_changed()

    def _configure(self, wanted: ConnSettings) -> None:
        self._inbound.configure(wanted, self._settings)
        self._settings = wanted

    def _on_given(self, descriptors: dict[str, int], _now: float) -> None:
        """Takes new sockets into use, or the new mark of the same ones."""
        try:
            offload = self._stage.environment.offload
            given = udp.Sockets(descriptors, self._nesting, offload=offload, compiled=self._kernel.trains)
        except OSError as error:
            self._stage.log.warning("sockets refused", reason=str(error))
            return
        if self._given is not None and self._given.are(given.descriptors):
            given.close()
            self._given.mark_changed()
            return
        if self._inbound.listening:
            self._outbound.stop()
            self._inbound.stop()
        if self._given is not None:
            self._given.close()
        self._given = given
        self._stage.bequest.leave(given.descriptors)
        self._begin()

    def _begin(self) -> None:
        """Starts to read and send, as soon as both the sockets and the settings are there."""
        if self._given is None or self._settings is None:
            return
        self._listen(self._given)
        if self._version is not None:
            self._line.applied(self._version)
            self._version = None

    def _on_routes(self) -> None:
        self._nesting.routes_changed()
        self._look_anew()

    def _listen(self, sockets: udp.Sockets) -> None:
        if self._inbound.listening:
            return
        self._inbound.listen(sockets)
        self._outbound.listen(sockets)
        self._stage.log.info("listening", port=sockets.port, families=len(sockets.all))
