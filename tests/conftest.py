"""A toy project: chapters of a few lines in a temporary folder, for tests that must not wait for the real ones."""
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cxr_explain.publish import PARAMETERS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))


class Toy:
    "A checkout with notebooks `nbs/NN_name.ipynb`, a README and runs."
    def __init__(self, root):
        self.root, self.runs = Path(root), Path(root)/'runs'
        (self.root/'nbs').mkdir(); (self.root/'settings.ini').touch()

    def chapter(self, number, name, *cells):
        begin = f'run = Run("{name}", profile, run_name, data_dir, seed)\nrun'
        head = [f'#| default_exp {name}', 'from cxr_explain.config import Run', PARAMETERS, begin]
        sources = [*head, *cells, 'run.finish()']
        made = [nbformat.v4.new_code_cell(s, id=f'{name}-{i}') for i, s in enumerate(sources)]
        made[2].metadata['tags'] = ['parameters']
        made.insert(1, nbformat.v4.new_markdown_cell('# Title', id=f'{name}-title'))
        kernel = dict(display_name='python3', language='python', name='python3')
        nb = nbformat.v4.new_notebook(cells=made, metadata=dict(kernelspec=kernel))
        path = self.root/'nbs'/f'{number:02}_{name}.ipynb'
        path.write_text(nbformat.writes(nb).rstrip('\n') + '\n', encoding='utf-8')
        return path

    def environment(self, **more):
        keep = {k: v for k, v in os.environ.items() if not k.startswith('CXR_EXPLAIN')}
        return keep | dict(CXR_EXPLAIN_ROOT=str(self.root)) | more

    def start(self, *args, **more):
        command = [sys.executable, '-c', 'from cxr_explain.runner import main; main()', *args]
        return subprocess.Popen(command, env=self.environment(**more), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)

    def call(self, *args, **more):
        "Exit status and all that was printed."
        process = self.start(*args, **more)
        return process.communicate()[0], process.returncode


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_EXPLAIN_ROOT', str(tmp_path))
    monkeypatch.delenv('CXR_EXPLAIN_RUNS', raising=False)
    return Toy(tmp_path)
