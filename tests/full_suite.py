"""The whole reliability suite, which takes too long for every change; pytest has a little of each of its parts.

    python tests/full_suite.py                  # kills, several processes, fuzzing, a soak; exit code 1 where one fails
    python tests/full_suite.py --share 0.1      # a tenth of it

One part after the other; each gives up by itself on what hangs. The table at the end has the last line of each.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What is run, and how much of it makes a full suite.
PARTS = (
    ("fault_injection.py", "--kills", 100),
    ("distributed_runs.py", "--kills", 10),
    ("fuzzing.py", "--cases", 1000),
    ("soak.py", "--steps", 2000),
)


@dataclass(frozen=True)
class Outcome:
    script: str
    passed: bool
    seconds: float
    last_line: str


def run_part(script: str, flag: str, amount: int) -> Outcome:
    """Run a part, and pass on what it says."""
    print(f"== {script} {flag} {amount}", flush=True)
    started, last = time.monotonic(), "nothing said"
    command = [sys.executable, "-u", str(HERE / script), flag, str(amount)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    code = process.wait()
    return Outcome(script, code == 0, time.monotonic() - started, last)


def main(share: float) -> bool:
    """Whether every part has passed."""
    outcomes = [run_part(script, flag, max(1, round(amount * share))) for script, flag, amount in PARTS]
    print("\n== summary")
    for outcome in outcomes:
        word = "passed" if outcome.passed else "FAILED"
        print(f"{outcome.script:20} {word}  {outcome.seconds / 60:5.1f} min  {outcome.last_line}")
    passed = all(outcome.passed for outcome in outcomes)
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    print(f"{'nothing lost' if passed else 'something FAILED'}, {minutes:.1f} min")
    return passed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="how much of each part (default: 1.0)")
    sys.exit(0 if main(parser.parse_args().share) else 1)
