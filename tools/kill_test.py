"""Kill a run of all chapters at random moments, call it again until it ends, and compare it with one left alone.

    python tools/kill_test.py [--kills 3] [--profile smoke] [--only CH ...] [--seed 0] [--keep]

Every artefact must be the same to the byte (times, locks and executed notebooks aside). It takes as long as three runs,
so it is no part of `make test`; `tests/test_runner.py` does the same with two toy chapters.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))

from check import contents, is_compared, unequal  # noqa: E402


def start(folder, name, options):
    "The runner in a process group of its own."
    code = [sys.executable, '-c', 'from cxr_explain.runner import main; main()', 'reproduce', '--run', name, *options]
    env = os.environ | dict(CXR_EXPLAIN_RUNS=str(folder), CXR_EXPLAIN_ROOT=str(ROOT), PYTHONPATH=str(ROOT))
    return subprocess.Popen(code, cwd=ROOT, env=env, start_new_session=True)


def kill(process, moment):
    "SIGKILL to the whole group after so many seconds; False when it had ended by itself."
    try: process.wait(moment)
    except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL); process.wait(); return True
    return False


def compared(folder): return {n: c for n, c in contents(folder).items() if is_compared(n)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=3); parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--profile', default='smoke'); parser.add_argument('--only', nargs='+', default=[])
    parser.add_argument('--keep', action='store_true', help='keep both runs')
    a = parser.parse_args(argv)
    options = ['--profile', a.profile, *(['--only', *a.only] if a.only else [])]
    folder, rng = Path(tempfile.mkdtemp(prefix='cxr_explain_kill_')), random.Random(a.seed)
    began = time.monotonic()
    if start(folder, 'whole', options).wait(): return 'the run that was left alone failed'
    whole = time.monotonic() - began
    for k in range(a.kills):
        moment = rng.uniform(2, max(3, whole/2))
        done = kill(start(folder, 'killed', options), moment)
        print(f"== {'killed' if done else 'ended by itself'} ({k + 1} of {a.kills}) after {moment:.1f} s", flush=True)
    if start(folder, 'killed', options).wait(): return 'the run that was killed failed when it was called again'
    one, two = compared(folder/'whole'), compared(folder/'killed')
    for name in (different := unequal(one, two)): print(f'   {name} differs')
    if a.keep or different: print(f'   both runs are kept in {folder}')
    else: shutil.rmtree(folder)
    print(f'== {len(one)} artefacts, {len(different)} differ')
    return int(bool(different) or not one)


if __name__ == '__main__': sys.exit(main())
