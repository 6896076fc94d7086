"""The runner from the outside: skip, failure, SIGKILL, lock, leftovers, publishing; on toy chapters."""
import os
import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import check
import pytest

from cxr_explain import publish, runner

SLOW = 'import time\nfor k in range(6): run.save(f"part{k}.json", dict(k=k)); time.sleep(.2)'


def files(folder): return {n: c for n, c in check.contents(folder).items() if check.is_compared(n)}


def test_killed_and_called_again_ends_with_the_same_bytes(toy):
    toy.chapter(0, 'first', SLOW)
    toy.chapter(1, 'second', 'run.record("sum", sum(run.load(f"part{k}.json")["k"] for k in range(6)), n=6)')
    text, status = toy.call('reproduce', '--profile', 'smoke', '--run', 'whole')
    assert status == 0, text
    moment = random.uniform(.5, 8)
    killed = toy.start('reproduce', '--profile', 'smoke', '--run', 'killed')
    time.sleep(moment)
    killed.send_signal(signal.SIGKILL); killed.communicate()
    text, status = toy.call('reproduce', '--profile', 'smoke', '--run', 'killed')
    assert status == 0, f'killed after {moment:.1f} s: {text}'
    assert files(toy.runs/'whole') == files(toy.runs/'killed'), f'killed after {moment:.1f} s'
    start = time.monotonic()
    text, status = toy.call('reproduce', '--profile', 'smoke', '--run', 'killed')
    assert text.count('up to date') == 2 and time.monotonic() - start < 10


def test_failure_names_chapter_cell_line_error_and_notebook(toy):
    toy.chapter(0, 'fine')
    toy.chapter(1, 'broken', 'x = 0\ny = 1/x')
    text, status = toy.call('reproduce', '--profile', 'smoke')
    assert status == 1
    assert 'chapter broken failed in code cell 5 of 6, line 2: y = 1/x' in text
    assert 'ZeroDivisionError: division by zero' in text
    assert (toy.runs/'smoke'/'notebooks'/'01_broken.ipynb').is_file() and '01_broken.ipynb' in text
    toy.chapter(1, 'broken', 'run.record("gate", False, gate="g", n=1)')
    text, status = toy.call('reproduce', '--profile', 'smoke', '--strict')
    assert (status, 'gate not passed: broken/g' in text) == (1, True)
    assert re.search(r'1/2 fine +up to date', text)


def test_a_chapter_without_data_is_left_out_and_the_next_one_comes(toy):
    toy.chapter(0, 'lacks', 'class NothingToRead(RuntimeError): pass\n'
                'run.record("reports", None, reason="none"); run.finish(); raise NothingToRead("no film has a report")')
    toy.chapter(1, 'next')
    text, status = toy.call('reproduce', '--profile', 'smoke')
    assert status == 0 and 'left out: no film has a report' in text and re.search(r'2/2 next +done', text)
    text, status = toy.call('reproduce', '--profile', 'smoke')
    assert status == 0 and text.count('up to date') == 2


def test_second_run_in_the_same_folder_is_refused(toy):
    toy.chapter(0, 'first')
    with runner.locked(toy.runs/'smoke'):
        text, status = toy.call('reproduce', '--profile', 'smoke')
    assert status == 1 and 'another run uses' in text


@pytest.mark.skipif(os.name == 'nt', reason='POSIX')
def test_processes_of_a_killed_run_are_ended(toy):
    folder = toy.runs/'smoke'
    sleep = [sys.executable, '-c', 'import time; print("up", flush=True); time.sleep(60)']
    ours, other = (subprocess.Popen(sleep, env=toy.environment(CXR_EXPLAIN_RUN=str(f)), stdout=subprocess.PIPE)
                   for f in (folder, toy.runs/'other'))
    for p in (ours, other): p.stdout.readline()
    with runner.locked(folder): pass
    ours.wait(10)
    assert other.poll() is None
    other.kill(); other.wait()
    for p in (ours, other): p.stdout.close()


@pytest.mark.parametrize('args, message', [
    (['--profile', 'real'], '--data DIR'), (['--data', 'no/such/folder'], 'no such folder'),
    (['--from', 'nothing'], "unknown chapter 'nothing'; choose from first"),
    (['--run', '../elsewhere'], 'cannot name a run'), (['--run', '/elsewhere'], 'cannot name a run')])
def test_mistakes_are_one_line(toy, args, message):
    toy.chapter(0, 'first')
    with pytest.raises(SystemExit, match=message): runner.main(['reproduce', *args])


@pytest.mark.parametrize('chapter, message', [('findings', 'trains nothing'), ('nothing', 'cxr_explain.nothing')])
def test_a_chapter_that_cannot_be_trained_is_one_line(toy, chapter, message):
    with pytest.raises(SystemExit, match=message): runner.main(['train', chapter, '--profile', 'smoke'])


def test_train_builds_where_there_is_nothing_to_train(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path))
    data = SimpleNamespace(build=lambda run: run.record('images', 3))
    monkeypatch.setattr(runner, '_module', lambda name: data)
    with pytest.raises(SystemExit) as e: runner.main(['train', 'data', '--profile', 'smoke'])
    assert not e.value.code and 'images' in capsys.readouterr().out
    assert (tmp_path/'smoke/results/data.json').is_file()


OUTPUTS = ('import sys\nfrom matplotlib import pyplot as plt\nimport pandas as pd',
           'fig, ax = plt.subplots(figsize=(2, 2))\nax.plot([1, 2])\nrun.figure(fig, "line");',
           'print("a"); print("warning", file=sys.stderr); print("b")\npd.DataFrame(dict(x=[1, 2]))',
           'run.record("auroc", .8123, low=.79, high=.83, n=10, part="test")')


def test_publish(toy):
    notebook = toy.chapter(0, 'config', *OUTPUTS)
    readme = toy.root/'README.md'
    readme.write_text('AUROC <!-- r:config/auroc/test --><!-- /r -->\n')
    for name, profile in (('small', 'smoke'), ('phantom', 'phantom')):
        text, status = toy.call('reproduce', '--profile', profile, '--run', name)
        assert status == 0, text
    before = check.contents(toy.root/'nbs')
    with pytest.raises(ValueError, match='profile smoke'): publish.publish(toy.runs/'small')
    assert check.contents(toy.root/'nbs') == before

    changed = publish.publish(toy.runs/'phantom')
    assert {'nbs/00_config.ipynb', 'README.md', 'figures/config_line.png', 'nbs/results/config.json'} <= set(changed)
    assert '0.812 (0.790 to 0.830)' in readme.read_text()
    assert publish.publish(toy.runs/'phantom') == [] and publish.check_published() == []
    stored = notebook.read_text()
    assert 'injected-parameters' not in stored and '"warning\\n"' not in stored and '"a\\n"' in stored
    assert publish.lint(notebook) == []
    settings = (check.ROOT/'settings.ini').read_text()
    (toy.root/'settings.ini').write_text(settings)
    assert check.changes('nbdev_clean', 'nbdev.clean', toy.root) == []

    readme.write_text(readme.read_text().replace('0.812', '0.822'))
    assert publish.check_published() == ['README.md: a marked number is not that of its record']
    assert publish.publish(toy.runs/'phantom') == ['README.md']
    notebook.write_text(stored.replace('.8123', '.8124'))
    assert '00_config.ipynb: code changed' in publish.check_published()
    with pytest.raises(ValueError, match='out of date'): publish.publish(toy.runs/'phantom')


def test_pages_of_the_appendix_that_a_run_lacks_keep_what_they_have(toy):
    toy.chapter(0, 'config', *OUTPUTS)
    page = toy.chapter(1, 'extra', 'run.record("images", 3)')
    (toy.root/'nbs'/'appendix').mkdir()
    page = page.rename(toy.root/'nbs'/'appendix'/'A01_extra.ipynb')
    page.write_text(page.read_text().replace('#| default_exp extra', 'run = None'))
    (toy.root/'README.md').touch()
    text, status = toy.call('reproduce', '--profile', 'phantom', '--appendix')
    assert status == 0, text
    assert 'nbs/results/extra.json' in publish.publish(toy.runs/'phantom')
    (toy.runs/'phantom'/'notebooks'/page.name).unlink()
    assert publish.publish(toy.runs/'phantom') == [] and publish.check_published() == []
    page.unlink() # a page that is gone takes its results along
    assert 'nbs/results/extra.json' in publish.publish(toy.runs/'phantom')
    assert not (toy.root/'nbs'/'results'/'extra.json').exists()


def test_clean_and_export_do_not_touch_the_checkout(toy):
    path = toy.chapter(0, 'config', '#| export\nx = 1')
    (toy.root/'settings.ini').write_text((check.ROOT/'settings.ini').read_text())
    (toy.root/'cxr_explain').mkdir(); (toy.root/'cxr_explain'/'__init__.py').write_text('__version__ = "0.1.0"\n')
    path.write_text(path.read_text().replace('"execution_count": null', '"execution_count": 3'))
    before = check.contents(toy.root)
    assert check.changes('nbdev_clean', 'nbdev.clean', toy.root) == ['nbdev_clean changes nbs/00_config.ipynb; run it']
    assert any('cxr_explain/config.py' in c for c in check.changes('nbdev_export', 'nbdev.doclinks', toy.root))
    assert check.contents(toy.root) == before


def test_results_are_printed(toy):
    (toy.runs/'r'/'results').mkdir(parents=True)
    (toy.runs/'r'/'results'/'cnn.json').write_text('[{"name": "auroc", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}]')
    for options in ([], ['--json']):
        text, status = toy.call('results', '--run', 'r', *options)
        assert status == 0 and 'auroc' in text
