"""Checks of a checkout: `python tools/check.py [clean|export|lint|links|published|all|test]`, or `cxr-explain check`.

What a notebook must look like is in `cxr_explain.publish`. Here is what needs git, ruff and nbdev: clean and export
must change nothing, tried on a copy so that nobody's work is touched; and `test`, which is what CI runs.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cxr_explain import publish
from cxr_explain.config import THREAD_VARIABLES
from cxr_explain.runner import environment, find_notebooks

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {'.git', '.venv', 'runs', '_docs', '_proc', 'build', 'dist', '__pycache__', '.ipynb_checkpoints',
            '.pytest_cache', '.ruff_cache', '.quarto'}  # where git cannot be asked


def listed(root=ROOT, *options):
    "Files of the checkout, relative to it, as git lists them; without git all but what is made by a run or a build."
    if (root/'.git').exists() and shutil.which('git'):
        options = options or ('-co', '--exclude-standard')
        out = subprocess.run(['git', 'ls-files', '-z', *options], cwd=root, capture_output=True, check=True).stdout
        return sorted(name for name in out.decode().split('\0') if name and (root/name).is_file())
    files = (p.relative_to(root) for p in root.rglob('*') if p.is_file())
    return sorted(p.as_posix() for p in files if not LEFT_OUT & set(p.parts) and not p.parts[0].endswith('.egg-info'))


def contents(root):
    "Every file below a folder, but what nbdev leaves behind for itself."
    files = (p for p in root.rglob('*') if p.is_file() and p.name != '.last_checked' and '__pycache__' not in p.parts)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def changes(function, module, root=ROOT):
    "What a command of nbdev would change: it runs on a copy of the checkout."
    names = [n for n in listed(root) if n != 'cxr_explain/_modidx.py' or n in listed(root, '-c')]
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'copy'
        for name in names:
            (copy/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root/name, copy/name)
        before = contents(copy)
        code = f'from {module} import {function}; {function}.__wrapped__()'
        done = subprocess.run([sys.executable, '-c', code], cwd=copy, capture_output=True, text=True)
        if done.returncode: return [f'{function} failed: {done.stderr[-2000:]}']
        after = contents(copy)
    if 'cxr_explain/_modidx.py' not in before: after.pop('cxr_explain/_modidx.py', None)
    return [f'{function} changes {n}; run it' for n in unequal(before, after)]


def unequal(a, b):
    "Names under which two folders hold different bytes."
    return sorted(n for n in a.keys() | b.keys() if a.get(n) != b.get(n))


def clean(): return changes('nbdev_clean', 'nbdev.clean')

def export(): return changes('nbdev_export', 'nbdev.doclinks')

def lint():
    "ruff, then the rules of notebooks."
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--output-format', 'concise', '.'], cwd=ROOT,
                          capture_output=True, text=True)
    found = (done.stdout + done.stderr).strip().splitlines() if done.returncode else []
    scratch = [n for n in listed(ROOT, '-c') if Path(n).match('nbs/**/_*.ipynb') or Path(n).match('nbs/_*.ipynb')]
    for notebook in find_notebooks(True):
        if advice := publish.rhythm(notebook): print(f'   note: {advice}')
    return found + publish.lint_all() + [f'{n} is scratch work; it is not committed' for n in scratch]

def links(): return [f'{p.relative_to(ROOT)}: {x}' for p in publish.find_pages() for x in publish.link_problems(p)]

def published():
    "Outputs, results, figures and numbers are those that `publish` left."
    missing = [n.stem for n in find_notebooks() if n.stem not in publish.read_published()]
    if missing: print(f"   note: not published yet: {', '.join(missing)}")
    return publish.check_published()

CHECKS = dict(clean=clean, export=export, lint=lint, links=links, published=published)


def run_checks(names):
    "Problems per check; says what it does."
    found = {}
    for name in names:
        start = time.monotonic()
        print(f'== {name}', flush=True)
        found[name] = CHECKS[name]()
        for problem in found[name]: print(f'   {problem}')
        print(f"   {'FAILED' if found[name] else 'ok'} ({time.monotonic() - start:.0f} s)", flush=True)
    return found


def called(what, command, **variables):
    "Problems of a command that must succeed."
    print(f'== {what}', flush=True)
    with environment(**variables): status = subprocess.call([sys.executable, *command], cwd=ROOT)
    return [f'exit status {status}; its output is above'] if status else []

def is_compared(path):
    "Whether two runs must agree on this file: on all but times, locks, executed notebooks, and a database's own names."
    if path.startswith('index/') and '.lance/' in path: return False # its names are random; index/*.json is compared
    return not (path.endswith('.timing.json') or path in ('times.json', '.lock') or path.startswith('notebooks/'))

def differences(a, b):
    "Where two runs differ."
    one, two = ({n: c for n, c in contents(folder).items() if is_compared(n)} for folder in (a, b))
    if not one or not two: return [f'no files in {a if two else b}']
    return [f'{n} differs between nbdev_test and reproduce' for n in unequal(one, two)]

def run_twice():
    "Every chapter as a test and as a run, at smoke, on one thread: the same bytes; and the appendix as a run."
    folder = Path(tempfile.mkdtemp(prefix='cxr_explain_'))
    same = dict.fromkeys(THREAD_VARIABLES, '1') | dict(PYTHONHASHSEED='0')
    test = ['-c', 'from nbdev.test import nbdev_test; nbdev_test.__wrapped__(n_workers=1, do_print=True, timing=True)']
    run = ['-c', 'from cxr_explain.runner import main; main()', 'reproduce', '--profile', 'smoke', '--strict']
    found = dict(nbdev_test=called('nbdev_test, run A', test, CXR_EXPLAIN_RUNS=str(folder/'A'), **same))
    found['reproduce'] = called('reproduce at smoke, run B', run, CXR_EXPLAIN_RUNS=str(folder/'B'), **same)
    found['equal'] = differences(folder/'A'/'smoke', folder/'B'/'smoke')
    for problem in found['equal']: print(f'   {problem}')
    appendix = [n.stem for n in find_notebooks(True)[len(find_notebooks()):]]
    more = [*run, '--appendix', '--only', *appendix]
    if appendix: found['appendix'] = called('appendix at smoke', more, CXR_EXPLAIN_RUNS=str(folder/'B'), **same)
    if any(found.values()): print(f'   runs A and B are kept in {folder}')
    else: shutil.rmtree(folder)
    return found


def test():
    "All of it. pytest comes last and counts each step as a test, so that its last line tells the whole."
    start = time.monotonic()
    steps = run_checks(CHECKS) | run_twice()
    print(f'== pytest, after {(time.monotonic() - start)/60:.1f} minutes', flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp)/'steps.json').write_text(json.dumps(steps), encoding='utf-8')
        with environment(CXR_EXPLAIN_STEPS=str(Path(tmp)/'steps.json')):
            return subprocess.call([sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider'], cwd=ROOT)


def main(argv=None):
    names = list(argv if argv is not None else sys.argv[1:]) or ['all']
    if names == ['test']: return test()
    if unknown := set(names) - {*CHECKS, 'all'}:
        sys.exit(f"unknown check {', '.join(unknown)}; choose from {', '.join(CHECKS)}")
    return int(any(run_checks(CHECKS if 'all' in names else names).values()))


if __name__ == '__main__':
    os.chdir(ROOT)
    sys.exit(main())
