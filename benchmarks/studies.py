"""Runs the shipped studies and the comparison, and writes their results into docs/studies.md.

    python benchmarks/studies.py                    # some hours on two cores; can be interrupted and continued
    python benchmarks/studies.py lr_cartpole gamma_cartpole --output studies

Each uses the command line, like a user. The figures are written to docs/images/studies; on the page, everything
below the line `<!-- found -->` is replaced.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs/studies"
PAGE = ROOT / "docs/studies.md"
IMAGES = ROOT / "docs/images/studies"
MARK = "<!-- found -->\n"


def section(name: str, folder: Path) -> str:
    """The section of a study: its question, the command, the figures, and the verdict."""
    title = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ").removesuffix(".")
    command = command_of(name)
    lines = [f"## {title}", "", f"`python -m pg_lightning {command} {name}`", ""]
    for file in sorted(folder.glob("*.png")):
        image = name if command == "study" else f"{name}_{file.stem.removeprefix('curves_')}"
        IMAGES.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, IMAGES / f"{image}.png")
        lines += [f"![{title}](images/studies/{image}.png)", ""]
    if command == "study":
        lines += ["```text", (folder / "verdict.txt").read_text().strip(), "```", ""]
    else:
        rows, _, verdict = (folder / "table.md").read_text().strip().partition("\n\n")
        lines += [rows, "", "```text", verdict, "```", ""]
    return "\n".join(lines)


def command_of(name: str) -> str:
    return "compare" if name.startswith("compare") else "study"


def main() -> None:
    shipped = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=shipped, metavar="STUDY", help=", ".join(shipped))
    parser.add_argument("--output", type=Path, default=Path("studies"), help="parent folder of the studies")
    arguments = parser.parse_args()
    for name in arguments.names:
        command = [sys.executable, "-m", "pg_lightning", command_of(name), name, "--output", str(arguments.output)]
        subprocess.run(command, check=True)
    found = [
        section(name, arguments.output / name)
        for name in shipped
        if (arguments.output / name / "results.csv").is_file()
    ]
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n" + "\n".join(found).rstrip() + "\n")


if __name__ == "__main__":
    main()
