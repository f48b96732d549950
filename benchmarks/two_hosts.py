"""Trains one policy on two hosts: network namespaces of this machine, connected by a pair of veth devices.

    python benchmarks/two_hosts.py [--config ppo_cartpole] [--total_steps 100_000] [--hang SECONDS]

Linux with `unshare` (util-linux) and `ip` (iproute2); no privileges, and the machine's own network is not changed. Each
host has its own address, loopback device and host name, and can only reach the other through the virtual cable. On
each, `torchrun` starts one process; together they run the same `python -m pg_lightning fit` as one host with two
processes, which is run for comparison. The two hosts share no memory, so all messages use the cable; on one
host they use shared memory. The exit status is 1 unless both runs end with bitwise equal weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import listed, positive, versions

HERE = Path(__file__).resolve().parent
ADDRESSES = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}
CABLE = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip netns add alpha
ip netns add beta
ip link add cable netns alpha type veth peer name cable netns beta
for host in alpha:10.77.0.1 beta:10.77.0.2; do
  ip -n ${host%:*} link set lo up
  ip -n ${host%:*} addr add ${host#*:}/24 dev cable
  ip -n ${host%:*} link set cable up
done
exec "$@"
"""


def fit(arguments: argparse.Namespace, root: Path, nodes: int) -> list[str]:
    """The arguments of `torchrun`: the module and its arguments."""
    return [
        *("-m", "pg_lightning", "fit", "--config", arguments.config),
        *("--data.total_steps", str(arguments.total_steps), "--data.num_envs", str(arguments.num_envs)),
        *("--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"),
        *("--trainer.num_nodes", str(nodes), "--trainer.devices", str(2 // nodes)),
        *("--trainer.default_root_dir", str(root)),
    ]


def torchrun(nodes: int, *where: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={nodes}",
        f"--nproc_per_node={2 // nodes}",
        *where,
    ]


def on_two_hosts(arguments: argparse.Namespace, root: Path) -> None:
    """Inside the namespaces: one torchrun per host, which connect at the address of the first host."""
    hosts = []
    for rank, (name, address) in enumerate(ADDRESSES.items()):
        launch = torchrun(2, f"--node_rank={rank}", f"--master_addr={ADDRESSES['alpha']}", "--master_port=29500")
        command = ["ip", "netns", "exec", name, *launch, *fit(arguments, root, nodes=2)]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable", "HOSTNAME": name}
        alone = f'hostname {name} && mount -t tmpfs tmpfs /dev/shm && exec "$@"'
        hosts.append(
            subprocess.Popen(["unshare", "--uts", "--mount", "sh", "-c", alone, "sh", *command], env=environment)
        )
        print(f"{name}: {address}", flush=True)
    codes = [host.wait() for host in hosts]
    if any(codes):
        raise SystemExit(f"error: exit statuses {codes}")


def weights(root: Path) -> dict[str, torch.Tensor]:
    [checkpoint] = root.glob("*/version_0/checkpoints/last.ckpt")
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ppo_cartpole")
    parser.add_argument("--total_steps", type=positive, default=100_000)
    parser.add_argument("--num_envs", type=positive, default=4, help="on each host")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.inside:
        on_two_hosts(arguments, Path(arguments.inside))
        return
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            parser.exit(2, f"error: there is no {program}; install util-linux and iproute2 (Linux only)\n")
    with tempfile.TemporaryDirectory() as folder:
        two, one = Path(folder) / "two_hosts", Path(folder) / "one_host"
        inside = [sys.executable, __file__, *sys.argv[1:], "--inside", str(two)]
        namespaces = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--uts"]
        start = time.perf_counter()
        subprocess.run([*namespaces, "sh", "-c", CABLE, "sh", *inside], check=True)
        seconds = {"two hosts": time.perf_counter() - start}
        start = time.perf_counter()
        subprocess.run([*torchrun(1, "--standalone"), *fit(arguments, one, nodes=1)], check=True)
        seconds["one host, two processes"] = time.perf_counter() - start
        theirs, ours = weights(two), weights(one)
    same = theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    for name, value in seconds.items():
        print(f"{name}: {value:.0f} s")
    print(f"weights after {arguments.total_steps:,} env steps: {'equal, bit by bit' if same else 'NOT EQUAL'}")
    print(listed(versions()))
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
