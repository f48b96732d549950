"""Instructions per rollout of the systems in `throughput.py`, counted by valgrind, independent of the machine's load.

    python benchmarks/instructions.py                                  # A2C on CartPole; a minute or two a system
    python benchmarks/instructions.py --workload ppo_cartpole --system "pg_lightning, fit"

Two counts of one program differ by about 0.2 %, so a change of 1 % is visible, which no clock on a shared machine
shows. They are not seconds: the time of an instruction depends on its kind and on the caches. Valgrind's processor has
no AVX-512.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import refuse_unknown

WARM_UP = 30  # rollouts before those that are counted
SYSTEMS = (
    "envs, random actions",
    "envs and inference",
    "learning alone, fit",
    "bare PyTorch loop",
    "pg_lightning, fit",
    "Stable-Baselines3",
)


def run_counted(name: str, system: str, rollouts: int) -> None:
    """Runs under valgrind: counts the instructions of `rollouts` rollouts and their updates."""
    import throughput
    from workloads import WORKLOADS, Stopwatch

    class Counter(Stopwatch):
        """Starts counting at the end of one lap and stops at the end of another."""

        laps = 0

        def lap(self, *arguments, **keywords) -> None:
            super().lap(*arguments, **keywords)
            self.laps += 1
            if self.laps == WARM_UP:
                control("on")
            elif self.laps == WARM_UP + rollouts:
                control("off")

    def control(state: str) -> None:
        command = ["callgrind_control", "-i", state, str(os.getpid())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    throughput.torch.set_num_threads(1)
    workload = WORKLOADS[name]
    counter = Counter(workload.rows, (WARM_UP + rollouts + 10) * workload.rows)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        throughput.SYSTEMS[system](workload, counter, 0, Path(folder))


def instructions(name: str, system: str, rollouts: int) -> int:
    """Instructions per rollout."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        script = [sys.executable, __file__, "--workload", name, "--rollouts", str(rollouts), "--counted", system]
        run = subprocess.run([*valgrind, *script], stderr=subprocess.PIPE, text=True)
        if run.returncode:
            raise SystemExit(f"error: {system}: {run.stderr.strip()[-500:]}")
        totals = re.findall(r"^totals: (\d+)", out.read_text(), re.MULTILINE)
    return int(totals[0]) // rollouts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="a2c_cartpole", help="a workload of workloads.py (default: a2c_cartpole)")
    parser.add_argument("--system", nargs="+", default=SYSTEMS, metavar="NAME", help=", ".join(SYSTEMS))
    parser.add_argument("--rollouts", type=int, default=60, help="number of counted rollouts (default: 60)")
    parser.add_argument("--counted", help=argparse.SUPPRESS)  # valgrind runs this script with it
    arguments = parser.parse_args()
    if arguments.counted:
        run_counted(arguments.workload, arguments.counted, arguments.rollouts)
        return
    refuse_unknown(parser, "--system", arguments.system, SYSTEMS)
    print(f"| {arguments.workload} | thousand instructions per rollout |\n|---|--:|")
    for system in arguments.system:
        print(f"| {system} | {instructions(arguments.workload, system, arguments.rollouts) / 1000:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
