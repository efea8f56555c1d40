"""Faults of a network namespace: DNS answers late, failed or lost; TCP late or lost; a peer cut off.

Packets are lost where their sender does not learn of it: what comes in is dropped before it is routed, what goes out is given to a
queue that nobody reads. A DROP on the way out would tell TCP, which then waits and sends anew instead of retransmitting.
Loopback is touched only by the faults of DNS, whose server may be there.
"""

from __future__ import annotations

import ipaddress
import math
import random
import secrets
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libslo.errors import CannotError, InputError
from libslo.lab.faults.base import Injector, OnAlreadyError, run_in_netns
from libslo.lab.faults.dns_packets import servfail
from libslo.lab.faults.probes import DNS_PORT, ask_dns, knock_ms
from libslo.lab.faults.undo import is_on
from libslo.lab.netns import netns_inode
from libslo.lab.nfqueue import PacketDelayer

__all__ = ["DnsServfail", "NetworkFault", "PacketDelay", "PacketLoss"]

_PROBES = 5
_LOSS_PROBES = 40
_LOSS_TIMEOUT_S = 0.5
_SURE = 1e-3  # a share that would give no hit at all with less than this probability must show in the probes
_HANDLES = {"dns_delay": "5107:", "packet_delay": "5108:"}  # ours: a root qdisc with another handle is never touched
# One table of iptables a kind: a verdict of a queue skips the rest of its table, so two in one table would hide one another.
_TABLES = {"dns_delay": "filter", "packet_delay": "filter", "dns_servfail": "mangle"}
_LOSS_TABLE = "raw"


@dataclass(frozen=True)
class Match:
    """Packets of one direction ("out" or "in"): protocol and source port ("" and 0: any), peer ("": any)."""

    direction: str
    protocol: str = ""
    source_port: int = 0
    peer: str = ""


_MATCHES = {
    "dns_delay": (Match("out", "udp", DNS_PORT),),
    "dns_servfail": (Match("out", "udp", DNS_PORT),),
    "dns_loss": (Match("out", "udp", DNS_PORT),),
    "packet_delay": (Match("out", "tcp"),),
    "packet_loss": (Match("out", "tcp"), Match("in", "tcp")),
}


class NetworkFault(Injector):
    """What the faults of a namespace share: rules of iptables with their undo, and whether they are there."""

    _steps: Sequence[Mapping[str, Any]] = ()

    @property
    def netns(self) -> Path:
        """The namespace of the target."""
        assert self.target.netns is not None  # noqa: S101 (find_target gives such a fault a namespace)
        return self.target.netns

    def matches(self) -> Sequence[Match]:
        """The packets that it is about."""
        return _MATCHES[self.fault]

    def run_step(self, command: Sequence[str]) -> dict[str, Any]:
        """A step of the record that runs a program in the namespace."""
        return {"do": "run", "netns": [netns_inode(self.netns), str(self.netns)], "command": list(command)}

    def add_rules(self, rules: Sequence[Sequence[str]], table: str, peer: str = "") -> None:
        """Put rules of iptables first in their chains, for both IP versions; what undoes them is remembered before."""
        programs = ["iptables"] + (["ip6tables"] if shutil.which("ip6tables") else [])
        if peer:
            programs = ["iptables" if ipaddress.ip_address(peer).version == 4 else "ip6tables"]
        head = ["-w", "5", "-t", table]
        self._remember([[program, *head, "-D", *rule] for program in programs for rule in rules])
        for program in programs:
            for rule in rules:
                run_in_netns(self.netns, [program, *head, "-I", *rule])

    def _remember(self, commands: Sequence[Sequence[str]]) -> None:
        steps = [self.run_step(command) for command in commands]
        if unclear := [step for step in steps if is_on(step)]:  # whoever may not look may not take off either
            fact = f"cannot tell what is on there already: {' '.join(unclear[0]['command'])}"
            raise CannotError(fact, hint="run as root (CAP_NET_ADMIN, CAP_SYS_ADMIN)")
        self.remember(steps)
        self._steps = steps

    def check_presence(self) -> None:
        """CannotError when somebody has taken off a part of it."""
        for step in self._steps:
            if not is_on(step):
                hint = "see who flushed the rules or changed the qdisc meanwhile"
                raise CannotError(f"{self.fault} did not take: not there any more: {' '.join(step['command'])}", hint=hint)

    def device_words(self, direction: str) -> list[str]:
        """The words of iptables for the target's device, or for every device but loopback (DNS: loopback too)."""
        flag = "-o" if direction == "out" else "-i"
        if self.target.device:
            return [flag, self.target.device]
        return [] if self.matches()[0].source_port else ["!", flag, "lo"]


class PacketDelay(NetworkFault):
    """dns_delay and packet_delay: what goes out is held for delay_ms, by netem or by a netfilter queue with a verdict after the wait.

    The queue lets packets pass when this process is killed; netem stays until recover_stale().
    """

    _delayer: PacketDelayer | None = None
    _before_ms: float | None = None

    def before(self) -> None:
        """The quickest way there and back without the fault."""
        self._probe_ms()  # a first answer costs the server and the neighbour tables more than those after it
        self._before_ms = self._probe_ms()

    def put_on(self) -> None:
        """By self.mechanism."""
        if self.mechanism == "netem":
            self._put_netem()
            return
        (match,) = self.matches()
        queue_number = random.randrange(1024, 32768)
        words = ["-p", match.protocol, *(["--sport", str(match.source_port)] if match.source_port else [])]
        rule = ["OUTPUT", *self.device_words("out"), *words, "-j", "NFQUEUE", "--queue-num", str(queue_number), "--queue-bypass"]
        self._delayer = PacketDelayer(self.netns, queue_number, self.number("delay_ms"))
        self._delayer.start()
        self.add_rules([rule], _TABLES[self.fault])

    def verify(self) -> dict[str, float]:
        """The added delay: of probes where the target can be probed, else of packets already held, else {}."""
        if self._before_ms is None:
            self.check_presence()
            held_ms = self._delayer.account.median_held_ms() if self._delayer else None
            return {} if held_ms is None else {"delay_ms": round(held_ms, 2)}
        now_ms, asked_ms = self._probe_ms(), self.number("delay_ms")
        if now_ms is None or now_ms - self._before_ms < asked_ms / 2:
            found = "no answers" if now_ms is None else f"{now_ms - self._before_ms:.1f} ms"
            hint = "see whether another injection is on in the same namespace"
            raise CannotError(f"{self.fault} did not take: asked for {asked_ms:g} ms, measured {found}", hint=hint)
        return {"delay_ms": round(now_ms - self._before_ms, 2), "probes": _PROBES}

    def let_go(self) -> None:
        """What waits goes at once."""
        if self._delayer:
            self._delayer.stop()
            self._delayer = None

    def _probe_ms(self) -> float | None:
        target, timeout_s = self.target, 2 + 2 * self.number("delay_ms") / 1e3
        if target.probe_netns is None:
            return None
        if self.fault == "packet_delay":
            values = knock_ms(target.probe_netns, target.address, _PROBES, timeout_s)
        else:
            values = [answer.took_ms for answer in ask_dns(target.probe_netns, target.address, target.probe_name, _PROBES, timeout_s)]
        return statistics.median(values) if values else None

    def _put_netem(self) -> None:
        (match,) = self.matches()
        handle, band = _HANDLES[self.fault], f"{_HANDLES[self.fault]}4"
        devices = [self.target.device] if self.target.device else _devices(self.netns, loopback=bool(match.source_port))
        for device in devices:
            if f" {handle} root" in run_in_netns(self.netns, ["tc", "qdisc", "show", "dev", device]):
                raise OnAlreadyError(f"{self.fault} is on already at {device}", hint="wait for its end")
        self._remember([["tc", "qdisc", "del", "dev", device, "root", "handle", handle] for device in devices])
        for device in devices:
            # everything in bands 1-3 of prio as by default, what is to be delayed through netem in the fourth
            run_in_netns(self.netns, ["tc", "qdisc", "add", "dev", device, "root", "handle", handle, "prio", "bands", "4"])
            delay = ["netem", "limit", "10000", "delay", f"{self.number('delay_ms'):g}ms"]
            run_in_netns(self.netns, ["tc", "qdisc", "add", "dev", device, "parent", band, *delay])
            for number, (family, word) in enumerate((("ip", "ip"), ("ipv6", "ip6")), 1):
                what = ["match", word, "protocol", "17" if match.protocol == "udp" else "6", "0xff"]
                if match.source_port:
                    what += ["match", word, "sport", str(match.source_port), "0xffff"]
                tree = ["tc", "filter", "add", "dev", device, "parent", handle, "protocol", family, "prio", str(number)]
                run_in_netns(self.netns, [*tree, "u32", *what, "flowid", band])


class DnsServfail(NetworkFault):
    """dns_servfail: a share of the answers gets rcode 2 on its way out of the server's namespace."""

    _changer: PacketDelayer | None = None

    def put_on(self) -> None:
        """Through a netfilter queue whose packets are rewritten; it lets them pass as they are when this process is killed."""
        (match,) = self.matches()
        queue_number, ratio, generator = random.randrange(1024, 32768), self.number("ratio"), random.Random(1)
        self._changer = PacketDelayer(
            self.netns, queue_number, change=lambda packet: servfail(packet) if generator.random() < ratio else None
        )
        self._changer.start()
        words = ["-p", match.protocol, "--sport", str(match.source_port)]
        rule = ["OUTPUT", *self.device_words("out"), *words, "-j", "NFQUEUE", "--queue-num", str(queue_number), "--queue-bypass"]
        self.add_rules([rule], _TABLES[self.fault])

    def verify(self) -> dict[str, float]:
        """The share of probes that failed, where the target can be probed; and how many answers were changed until now."""
        self.check_presence()
        target, ratio = self.target, self.number("ratio")
        measured: dict[str, float] = {}
        if target.probe_netns is not None:
            count = _probes_for(ratio)
            answers = ask_dns(target.probe_netns, target.address, target.probe_name, count, 5)
            failed = sum(answer.rcode == 2 for answer in answers)
            measured = {"failed_ratio": round(failed / count, 3), "probes": count}
            if not failed and (1 - ratio) ** count < _SURE:
                raise CannotError(f"dns_servfail did not take: asked for {ratio:g} of the answers, measured none of {count}")
        return measured | {"changed_packets": self._changer.account.changed if self._changer else 0}

    def let_go(self) -> None:
        """Unbind the queue."""
        if self._changer:
            self._changer.stop()
            self._changer = None


class PacketLoss(NetworkFault):
    """dns_loss, packet_loss and partition: a share of the packets is lost."""

    def matches(self) -> Sequence[Match]:
        """The packets that it is about; of a partition, those to and from its peer."""
        if self.fault == "partition":
            return (Match("out", peer=self.peer()), Match("in", peer=self.peer()))
        return super().matches()

    def peer(self) -> str:
        """The address of a partition's peer; InputError when it is none."""
        given = str(self.parameters["peer"])
        try:
            return str(ipaddress.ip_address(self.target.addresses.get(given, given)))
        except ValueError:
            roles = ", ".join(self.target.addresses) or "outside a lab an address"
            raise InputError(f"no peer {given!r}", hint=f"an address, or one of: {roles}") from None

    def before(self) -> None:
        """A peer that is none is refused before anything is done."""
        self.matches()

    def put_on(self) -> None:
        """By self.mechanism, with a random number for each packet."""
        token, queue_number = secrets.token_hex(4), random.randrange(32768, 65536)  # a queue that nobody reads
        if self.mechanism == "nftables":
            self._remember([["nft", "delete", "table", "inet", f"slo_{token}"]])
            run_in_netns(self.netns, ["nft", "-f", "-"], stdin=self._nft_table(token, queue_number))
            return
        rules = [self._iptables_rule(match, token, queue_number) for match in self.matches()]
        self.add_rules(rules, _LOSS_TABLE, peer=self.peer() if self.fault == "partition" else "")

    def _iptables_rule(self, match: Match, token: str, queue_number: int) -> list[str]:
        words = self.device_words(match.direction)
        if match.peer:
            words += ["-d" if match.direction == "out" else "-s", match.peer]
        if match.protocol:
            words += ["-p", match.protocol, *(["--sport", str(match.source_port)] if match.source_port else [])]
        if self.number("ratio") < 1:
            words += ["-m", "statistic", "--mode", "random", "--probability", f"{self.number('ratio'):.6f}"]
        words += ["-m", "comment", "--comment", f"slo-{token}"]
        if match.direction == "out":
            return ["OUTPUT", *words, "-j", "NFQUEUE", "--queue-num", str(queue_number)]
        return ["PREROUTING", *words, "-j", "DROP"]

    def _nft_table(self, token: str, queue_number: int) -> str:
        lines = []
        for match in self.matches():
            out = match.direction == "out"
            words: list[str] = []
            if device := self.device_words(match.direction):
                words = [f'{"oif" if out else "iif"}name {"!= " if device[0] == "!" else ""}"{device[-1]}"']
            if match.peer:
                words.append(f"ip{'6' if ':' in match.peer else ''} {'daddr' if out else 'saddr'} {match.peer}")
            if match.protocol:
                words.append(f"{match.protocol} sport {match.source_port}" if match.source_port else f"meta l4proto {match.protocol}")
            if self.number("ratio") < 1:
                words.append(f"numgen random mod 1000000 < {round(self.number('ratio') * 1e6)}")
            words.append(f"counter queue num {queue_number}" if out else "counter drop")
            hook = "output" if out else "prerouting"
            lines.append(f"chain {hook} {{ type filter hook {hook} priority -300; policy accept; {' '.join(words)}; }}")
        return "\n".join([f"table inet slo_{token} {{", *lines, "}", ""])

    def verify(self) -> dict[str, float]:
        """The share of probes without an answer, where the target can be probed; else {} when the rules are there."""
        self.check_presence()
        ratio, sides = self.number("ratio"), len(self.matches())
        probe = self.target.peers.get(str(self.parameters["peer"])) if self.fault == "partition" else self.target.probe_netns
        if probe is None:
            return {}
        if self.fault == "dns_loss":
            count = _probes_for(ratio)
            answers = len(ask_dns(probe, self.target.address, self.target.probe_name, count, _LOSS_TIMEOUT_S))
        else:
            count = _LOSS_PROBES
            answers = len(knock_ms(probe, self.target.address, count, _LOSS_TIMEOUT_S))
        if answers == count and (1 - ratio) ** (count * sides) < _SURE:
            raise CannotError(f"{self.fault} did not take: asked for {ratio:g}, measured no loss in {count} probes")
        return {"unanswered_ratio": round(1 - answers / count, 3), "probes": count}


def _probes_for(ratio: float) -> int:
    """So many probes that at least one is hit but for _SURE; 20 to 200."""
    return 20 if ratio >= 1 else max(20, min(200, math.ceil(math.log(_SURE) / math.log(1 - ratio))))


def _devices(netns: Path, *, loopback: bool) -> list[str]:
    lines = run_in_netns(netns, ["ip", "-o", "link", "show", "up"]).splitlines()
    names = [line.split(":")[1].split("@")[0].strip() for line in lines if line]
    return [name for name in names if loopback or name != "lo"]
