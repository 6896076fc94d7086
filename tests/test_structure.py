"""What crosses notebooks: layout, import order, one module per notebook; and that the lint finds what it must."""
import json

import check
import pytest

from cxr_explain import publish
from cxr_explain.runner import find_notebooks


@pytest.mark.parametrize('notebook', [p for p in publish.find_pages() if p.suffix == '.ipynb'], ids=lambda p: p.stem)
def test_notebook(notebook):
    assert publish.lint(notebook) == []


def test_modules_are_unique_and_exported():
    modules = [publish._module_name(publish.read_json(n)) for n in find_notebooks()]
    modules = [m for m in modules if m]
    assert len(modules) == len(set(modules))
    assert all((check.ROOT/'cxr_explain'/f'{m}.py').is_file() for m in modules)


def edit(path, change):
    nb = json.loads(path.read_text(encoding='utf-8'))
    change(nb['cells'])
    path.write_text(json.dumps(nb), encoding='utf-8')
    return '\n'.join(publish.lint(path))


PRINTED = [dict(output_type='stream', name='stdout', text='in /some/where/x')]
FAULTS = {
    'later chapter': lambda cells: cells[2].update(source='from cxr_explain.last import f'),
    'imports *': lambda cells: cells[2].update(source='from cxr_explain.config import *'),
    'no chapter makes': lambda cells: cells[2].update(source='import cxr_explain.nothing'),
    'not the one that all chapters share': lambda cells: cells[3].update(source='profile = "phantom"'),
    'share a cell': lambda cells: cells[2].update(source='import os\nx = 1'),
    'not plain Python': lambda cells: cells[4].update(source='%matplotlib inline\n' + cells[4]['source'][0]),
    'default_exp other is not the name': lambda cells: cells[0].update(source='#| default_exp other'),
    'not unique': lambda cells: cells[1].update(id=cells[0]['id']),
    'no title': lambda cells: cells[1].update(source='no title'),
    'wide; at most 40 and 120': lambda cells: cells[4].update(source='x = 1\n'*41),
    'Research only': lambda cells: cells[4].update(source='ax.imshow(img)'),
    'absolute path': lambda cells: cells[4].update(outputs=PRINTED),
    'does not call run.finish': lambda cells: cells[-1].update(source='pass'),
}


@pytest.fixture
def three(toy):
    return [toy.chapter(i, name) for i, name in enumerate(('config', 'middle', 'last'))][1]


def test_good_chapter(three):
    assert publish.lint(three) == []


@pytest.mark.parametrize('message', FAULTS)
def test_lint_finds(three, message):
    assert message in edit(three, FAULTS[message])


def test_two_notebooks_one_module(three, toy):
    toy.chapter(7, 'last')
    assert 'two notebooks make module last' in publish.lint_all()


def test_appendix_makes_no_module(three, toy):
    (toy.root/'nbs'/'appendix').mkdir()
    path = toy.root/'nbs'/'appendix'/'A01_middle.ipynb'
    three.rename(path)
    assert any('only chapters make modules' in p for p in publish.lint(path))


@pytest.mark.parametrize('text, found', [
    ('See [x](nothing.ipynb).', 'no such file: nothing.ipynb'),
    ('[a](https://arxiv.org/abs/123)', 'not a valid arXiv number: 123'),
    ('[a](https://doi.org/11.1)', 'not a valid DOI: 11.1'),
    ('As shown [@nobody2020].', 'not in references.bib: nobody2020'),
    ('[home](README.md) [a](https://arxiv.org/abs/1901.07031) `[x](y)` me@example.org', None)])
def test_links(toy, text, found):
    (toy.root/'README.md').write_text(text)
    assert publish.link_problems(toy.root/'README.md') == ([found] if found else [])
