"The index where it crosses processes: killed while adding, written by two, read by another; and hostile names."
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from cxr_explain.config import MissingArtefact
from cxr_explain.index import (
    StaleIndex,
    bench_fields,
    clustered_vectors,
    create_index,
    data_hash,
    exact_topk,
    measure_search,
    open_index,
    row_keys,
)

FIELDS = dict(patient_id='str', view='str', label_edema='bool', age='float', order='int')
DIM = 16


def made(a, b):
    "Rows a to b: the same in every process."
    emb = np.stack([np.random.default_rng(k).normal(size=DIM) for k in range(a, b)]).astype('f4')
    table = pd.DataFrame(dict(patient_id=[f'p{k//2}' for k in range(a, b)], view='PA',
                              label_edema=[k % 3 == 0 for k in range(a, b)], age=50., order=range(a, b)))
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    return [f'i{k:05}' for k in range(a, b)], emb, [f'common word{k}' for k in range(a, b)], table


WRITER = '''
import sys
sys.path[:0] = {path!r}
from cxr_explain.index import open_index
from test_index import made
index = open_index({url!r}, 'cases')
for a in range({start}, {stop}, {step}):
    index.add(*made(a, a + {step})); print(a + {step}, flush=True)
    if {optimise} and a % (8*{step}) == 0: index.optimise(approximate=True)
'''


def writer(url, start=0, stop=100_000, step=200, optimise=False):
    code = WRITER.format(path=[p or os.getcwd() for p in (os.path.dirname(__file__), *sys.path)], url=str(url),
                         start=start, stop=stop, step=step, optimise=optimise)
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def index(tmp_path):
    return create_index(tmp_path, 'cases', DIM, FIELDS, 'm')


@pytest.mark.parametrize('optimise', [False, True])
def test_killed_while_adding(index, tmp_path, optimise):
    "SIGKILL at odd moments: every acknowledged batch is there, no part of another, and all ways of searching work."
    told = 0
    for moment in (0, .03, .11):
        process = writer(tmp_path, told, optimise=optimise)
        told = int(process.stdout.readline())
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        told = int(rest[-1]) if rest else told
        again = open_index(tmp_path, 'cases', 'm')
        n = len(again)
        assert n in (told, told + 200) # the last batch may have been committed, but not yet announced
        ids, emb, texts, table = made(0, n)
        assert again.data() == data_hash(row_keys(ids, emb, texts, table))
        at, _ = exact_topk(emb[:5], emb, 3)
        for q in range(5):
            found = again.search(emb[q], k=3, patient='', exact=True)
            assert found.id.tolist() == [ids[i] for i in at[q]]
            assert again.search(text=f'word{n - 1}', patient='').id.tolist() == [ids[-1]]
        told = n
    again.add(*made(n, n + 10))
    again.optimise()
    assert len(open_index(tmp_path, 'cases', 'm')) == n + 10


def test_killed_before_the_table_was_finished(tmp_path, monkeypatch):
    import lancedb.index
    monkeypatch.setattr(lancedb.index, 'FTS', None)
    with pytest.raises(TypeError): create_index(tmp_path, 'cases', DIM, FIELDS, 'm')
    with pytest.raises(StaleIndex, match='never finished; make it again'): open_index(tmp_path, 'cases')
    monkeypatch.undo()
    assert len(create_index(tmp_path, 'cases', DIM, FIELDS, 'm', replace=True)) == 0


def test_two_writers_lose_nothing(index, tmp_path):
    both = [writer(tmp_path, a, a + 1000, 100) for a in (0, 50_000)]
    assert [p.wait() or p.stdout.read().split()[-1] for p in both] == ['1000', '51000']
    ids = made(0, 1000)[0] + made(50_000, 51_000)[0]
    again = open_index(tmp_path, 'cases')
    assert len(again) == 2000 and again.has(ids) == set(ids)


def test_a_reader_sees_what_was_there_when_it_opened(index, tmp_path):
    index.add(*made(0, 20))
    reader = open_index(tmp_path, 'cases')
    index.delete(['i00003'])
    assert 'i00003' in set(reader.search(text='common', k=50, patient='').id)
    assert 'i00003' not in set(open_index(tmp_path, 'cases').search(text='common', k=50, patient='').id)


HOSTILE = ["p'1", "'; DROP TABLE cases; --", "x' OR '1'='1", 'a"b', '\\', '%', '__', 'é\u202e', "''", ' ', 'p\n1']


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_names(index, name):
    ids, emb, texts, table = made(0, 6)
    table['patient_id'] = [name]*2 + ['other']*4
    ids[5] = name
    index.add(ids, emb, texts, table)
    everyone = index.search(emb[0], patient='', k=9)
    assert len(everyone) == 6 and everyone.id[0] == ids[0]
    assert set(index.search(emb[0], patient=name, k=9).patient_id) == {'other'}
    assert set(index.search(text='common', patient=name, k=9).patient_id) == {'other'}
    assert len(index.search(emb[0], patient='', k=9, where=dict(patient_id=name))) == 2
    assert index.has([name]) == {name}
    index.delete([name])
    assert len(index) == 5


@pytest.mark.parametrize('text', ['AND', 'word1 AND (', '"', '*', 'a:b', '+word1 -word2', 'word1~', '\\', 'word1^2'])
def test_words_are_words(index, text):
    index.add(*made(0, 6))
    if not any(c.isalnum() for c in text):
        with pytest.raises(ValueError, match='holds no word'): index.search(text=text, patient='')
    else: assert set(index.search(text=text, patient='').text) <= {f'common word{k}' for k in range(6)}


def test_where_and_kinds(index):
    index.add(*made(0, 30))
    q = made(0, 1)[1][0]
    def found(**where): return set(index.search(q, k=99, patient='', where=where)['order'])
    assert found(order=[3, 4]) == {3, 4}
    assert found(label_edema=True) == set(range(0, 30, 3))
    assert found(label_edema=False, order=[1, 3]) == {1}
    assert found(age=51.) == set()
    assert found(id=['i00007', 'nobody']) == {7}
    for wrong in (dict(age=float('nan')), dict(view=None), dict(view=[]), dict(height=3)):
        with pytest.raises(ValueError): found(**wrong)


def test_ties_across_the_cut(index):
    "Five hundred equal rows: whatever k is, the first ids."
    ids, emb, texts, table = made(0, 500)
    order = np.random.default_rng(0).permutation(500)
    table['patient_id'] = 'p'
    index.add([ids[i] for i in order], np.tile(emb[:1], (500, 1)), ['same words']*500, table)
    for optimised in (False, True):
        if optimised: index.optimise(approximate=True)
        for k in (1, 7, 150):
            assert index.search(emb[0], k=k, patient='', exact=True).id.tolist() == ids[:k]
            assert index.search(text='words', k=k, patient='').id.tolist() == ids[:k]
        assert index.search(emb[0], 'words', k=7, patient='', exact=True).id.tolist() == ids[:7]


def test_optimised_twice_finds_as_much(tmp_path):
    "Rows that came later are found before and after, and upkeep costs no recall."
    rng = np.random.default_rng(0)
    x = clustered_vectors(6050, rng)
    q, x = x[6000:], x[:6000]
    ids, texts, table = bench_fields(6000, rng, 1)
    index = create_index(tmp_path, 'a', 512, dict(patient_id='str', part='str', view='str', label_0='bool'), 'm')
    index.add(ids[:5000], x[:5000], texts[:5000], table[:5000])
    index.optimise(approximate=True)
    index.add(ids[5000:], x[5000:], texts[5000:], table[5000:])
    for _ in range(3):
        assert measure_search(index, q, x, ids)['recall_at_10'] > .95
        assert index.search(x[5999], k=1, patient='').id[0] == ids[5999]
        index.optimise(approximate=True)
    index.delete(ids[:3000])
    assert index.search(x[0], k=99, patient='').id.isin(ids[3000:]).all()


def test_table_of_knowledge_has_no_patients(tmp_path):
    cards = create_index(tmp_path, 'cards', DIM, dict(kind='str'), 'm')
    ids, emb, texts, _ = made(0, 5)
    cards.add(ids, emb, texts, pd.DataFrame(dict(kind=['icd']*5)))
    assert cards.search(emb[2], k=1).id[0] == ids[2]
    with pytest.raises(ValueError, match='knows no patients'): cards.search(emb[2], patient='p1')
    create_index(tmp_path, 'cases', DIM, FIELDS, 'm2')
    assert len(open_index(tmp_path, 'cards', 'm')) == 5 and len(open_index(tmp_path, 'cases', 'm2')) == 0


def test_stale_missing_foreign(index, tmp_path):
    import lancedb
    index.add(*made(0, 5))
    assert len(open_index(tmp_path, 'cases', 'm', index.data())) == 5
    old = index.data()
    index.add(*made(5, 6))
    with pytest.raises(StaleIndex, match='holds data'): open_index(tmp_path, 'cases', 'm', old)
    with pytest.raises(StaleIndex, match="holds vectors of model m, not m2"): open_index(tmp_path, 'cases', 'm2')
    with pytest.raises(MissingArtefact): open_index(tmp_path, 'nothing')
    lancedb.connect(str(tmp_path)).create_table('foreign', data=[dict(id='a')])
    with pytest.raises(StaleIndex, match='not made by this version'): open_index(tmp_path, 'foreign')
    assert json.loads(index.table.schema.metadata[b'cxr_explain'])['model'] == 'm'


def test_an_object_store_by_url(index, tmp_path):
    "The way that s3:// takes, to an object store that lies on this disk; bucket and credentials are not tested here."
    url = f'file-object-store://{tmp_path}/bucket'
    there = create_index(url, 'cases', DIM, FIELDS, 'm')
    for i in (index, there):
        i.add(*made(0, 300)); i.add(*made(300, 400)); i.delete(['i00007'])
    there.close()
    again, query = open_index(url, 'cases', 'm', index.data()), made(7, 8)[1][0]
    assert len(again) == 399
    for asked in (dict(emb=query), dict(text='word11'), dict(emb=query, text='word11', where=dict(label_edema=True))):
        pd.testing.assert_frame_equal(again.search(**asked, patient='p3'), index.search(**asked, patient='p3'))
    with pytest.raises(StaleIndex): open_index(url, 'cases', 'other')
