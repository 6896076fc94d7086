"Search for cases on fabricated films: the index of a run, nobody's own patient, stale files, real reports and films."
import json

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_explain import retrieval as R
from cxr_explain.cache import Sample, build_cache
from cxr_explain.cnn import build_cnn
from cxr_explain.config import MissingArtefact, Run, StaleArtefact, make_rng
from cxr_explain.data import MANIFEST_COLUMNS
from cxr_explain.findings import LABELS, label_columns
from cxr_explain.index import StaleIndex
from cxr_explain.reports import openi_part
from cxr_explain.towers import save_embeddings
from cxr_explain.train import save_model

DIM, N = 32, 120


def film(item, px): return Sample(make_rng(item['k'], 'film').integers(0, 200, (px, px), np.uint8))


def make_rows(n=N, per_patient=2):
    y = np.zeros((n, len(LABELS)))
    y[np.arange(n), np.arange(n) % 7] = 1
    y[::3, 8] = 1 # every third study has a second finding
    names, patients = [f'i{k:03}' for k in range(n)], [f"o'p{k//per_patient:03}" for k in range(n)]
    rows = pd.DataFrame(dict(
        image_id=names, study_id=names, patient_id=patients, split_group=patients,
        part=np.where(np.arange(n) < 80, 'train', 'test'), row=np.arange(n), view='PA', sex='F', age=50.,
        site='A', source='made', licence='CC0-1.0', weight=1.,
        findings=[f'There is {LABELS[k % 7].lower()}. Word{k}.' for k in range(n)], impression='', path=None,
        order=np.arange(n) % per_patient))
    rows['fold'] = pd.array(np.where(rows.part == 'train', np.arange(n)//per_patient % 5, -1), 'Int32')
    for prefix, values in (('label', y), ('annotated', y > -1), ('truth', y*np.nan), ('visible', y*np.nan)):
        rows[label_columns(prefix)] = values
    return rows.reindex(columns=list(MANIFEST_COLUMNS))


def make_space(rows, model='clip', seed=0):
    rng = np.random.default_rng(seed)
    y = rows[label_columns('label')].to_numpy(float)
    base = y @ rng.normal(size=(14, DIM))
    img, txt = (R.as_vector(base + .5*rng.normal(size=base.shape)) for _ in range(2))
    return R.Space(model, rows, img, txt, rows.findings.tolist())


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path))
    run, rows = Run('retrieval', 'smoke'), make_rows()
    build_cache(run.dir, [dict(image_id=i, k=k) for k, i in enumerate(rows.image_id)], film, 64)
    run.seal('pixels')
    run.save('manifest.parquet', rows)
    save_model(run, 'clip', torch.nn.Linear(2, 2), dict(arch='made'))
    return run


@pytest.fixture
def space(run): return make_space(run.load('manifest.parquet'))


def test_nobody_finds_himself(run, space):
    cases = R.build_cases(run, space)
    assert set(cases) == {'image', 'text'} and len(cases['image']) == 80
    for k in range(0, 80, 7): # patients who are in the index ask, in all ways
        who = space.rows.patient_id[k]
        for way in (dict(img=space.img[k]), dict(txt=space.txt[k], find='text'),
                    dict(img=space.img[k], txt=space.txt[k]), dict(words=space.texts[k], find='text'),
                    dict(txt=space.txt[k], words=space.texts[k], find='text')):
            hits = R.ask(cases, who, k=79, **way)
            assert len(hits) and who not in set(hits.patient_id)
        assert R.ask(cases, '', img=space.img[k], k=1).id[0] == space.rows.image_id[k]
    with pytest.raises(ValueError, match='whose query'): R.ask(cases, None, img=space.img[0])


def test_stale_index_is_refused(run, space):
    with pytest.raises(MissingArtefact): R.open_cases(run)
    cases = R.build_cases(run, space)
    assert {k: i.data() for k, i in R.open_cases(run).items()} == {k: i.data() for k, i in cases.items()}
    cases['text'].delete(['i003'])
    with pytest.raises(StaleIndex, match='holds data'): R.open_cases(run)
    R.build_cases(run, space)
    save_model(run, 'clip', torch.nn.Linear(2, 2), dict(arch='another'))
    with pytest.raises(StaleArtefact, match='holds vectors of model'): R.open_cases(run)
    R.build_cases(run, make_space(space.rows, seed=1)) # and mended by building it again
    assert len(R.open_cases(run)['image']) == 80


def test_same_content_same_hash(run, space):
    one = {k: i.data() for k, i in R.build_cases(run, space).items()}
    signed = (run.dir/'index'/'clip.json').read_bytes()
    assert {k: i.data() for k, i in R.build_cases(run, space).items()} == one
    assert (run.dir/'index'/'clip.json').read_bytes() == signed


def test_table_of_hits_is_the_exact_search(run, space):
    cases, q, g = R.build_cases(run, space), space.gallery('test'), space.gallery('train')
    top = R.topk_table(cases, q, 5)
    at, _ = R.exact_topk(q.img, g.img, 5)
    assert top.hit_id.tolist() == g.rows.image_id.to_numpy()[at].ravel().tolist()
    assert not top.same_patient.any() and set(g.rows.patient_id).isdisjoint(q.rows.patient_id)
    y = R.score_targets(space.rows) == 1
    at = {i: k for k, i in enumerate(space.rows.image_id)}
    for r in top.itertuples():
        a, b = y[at[r.query_id]], y[at[r.hit_id]]
        assert r.label_overlap == round((a & b).sum()/(a | b).sum(), 4)
    assert set(top.label_overlap) > {0., .5, 1.}


def test_copies_of_a_text_are_no_handicap():
    "Words give copies of a text equal scores; that costs no precision, as with the wrong one first it would."
    rng = np.random.default_rng(0)
    yq, yg = rng.random((200, 14)) < .1, rng.random((300, 14)) < .1
    sim = np.repeat(rng.random((200, 30)), 10, axis=1) # thirty texts, ten copies of each
    ties, broken = (R.label_table(s, yq, yg).set_index('name').value for s in (sim, sim + 1e-6*rng.random(sim.shape)))
    assert abs(ties - broken).max() < .04
    right = R.overlap(yq, yg)[yq.any(1)] > 0
    first = np.lexsort((right, -sim[yq.any(1)]), axis=1)[:, :5] # the wrong ones of what ties first
    assert np.take_along_axis(right, first, 1).mean() < broken['precision_at_5'] - .1
    back = R.label_table(sim[:, ::-1], yq, yg[::-1]).set_index('name').value # nor does the order of the gallery matter
    assert np.isclose(back['precision_at_5'], ties['precision_at_5'])


def test_predicted_labels_decide_never_true_ones(run, space):
    q, g = space.gallery('test'), space.gallery('train')
    pred = pd.DataFrame(dict(image_id=space.rows.image_id, part=space.rows.part))
    rng = np.random.default_rng(0)
    for prefix in ('logit', 'p'): pred[label_columns(prefix)] = rng.random((N, 14))
    run.save('predictions/cnn.parquet', pred)
    run.save('predictions/cnn.json', dict(temperature={}, threshold={c[6:]: .5 for c in label_columns('label')}))
    at, e = R.candidates(run, q, g, 20)
    rows = q.rows.copy()
    rows[label_columns('label')] = 0.  # the query's own labels change nothing
    again = R.candidates(run, R.replace(q, rows=rows), g, 20)
    assert np.array_equal(e, again[1]) and np.array_equal(at, again[0])
    assert e.shape == (len(q.rows), 20, 4) and ((e[:, :, 2:] >= 0) & (e[:, :, 2:] <= 1)).all()


def write_openi(folder):
    rng, rows = np.random.default_rng(0), []
    classes = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Effusion', 'Mass', 'Nodule', 'Fibrosis',
               'Pleural_Thickening', 'Pneumonia', 'Pneumothorax')
    for k in range(200):
        has = rng.random(len(classes)) < .15
        words = [c.lower().replace('_', ' ') for c, h in zip(classes, has) if h]
        said = ' '.join([*words, f'only{k}'])
        rows.append(dict(id=f'CXR{k}', findings=f'seen {said}', impression=said,
                         gold14=dict(zip(classes, has.tolist())) | {'No Finding': not has.any()}))
    path = folder/'openi_reports.jsonl'
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return path, rows


def test_real_reports(run, tmp_path):
    path, rows = write_openi(tmp_path)
    t = R.openi_study(run, path).set_index(['method', 'name']).value
    assert t['tfidf', 'ndcg_at_10'] > t['shuffled', 'ndcg_at_10'] + .2 < t['bm25', 'ndcg_at_10'] + .2
    own = R.openi_sections(path)
    assert {r['id'] for r in own} == {r['id'] for r in rows if openi_part(r['id']) == 'openi_test'}
    train = [r['findings'] for r in rows if openi_part(r['id']) == 'openi_dev']
    found = R.section_study(run, train, [r['findings'] for r in own], [r['impression'] for r in own], None, part='x')
    assert found[(found.method == 'bm25') & (found.name == 'recall_at_1')].value.item() > .9
    assert all(r['n'] and r['gallery'] for r in run.records)


def test_real_films(run, tmp_path, monkeypatch):
    "Films of others only; a way that knows the label wins; clip is used where there is one, and left out where not."
    rows = run.load('manifest.parquet')
    net = build_cnn(dict(arch='resnet18', width=8))
    folder = save_model(run, 'cnn', net, dict(arch='resnet18', width=8))
    monkeypatch.setattr(R, 'phantom_network', lambda: folder)
    t = R.real_images(run)
    assert set(t.method) == {'thumbnail', 'cnn_phantom', 'shuffled'}
    save_embeddings(run, 'clip', 'image', rows.image_id, make_space(rows).img)
    t = R.real_images(run)
    clip = t[(t.method == 'clip_phantom') & (t.name == 'ndcg_at_10')].value.item()
    assert clip > t[(t.method == 'shuffled') & (t.name == 'ndcg_at_10')].value.item() + .3
    t = t[t.finding.notna()]
    assert (t.value.isna() == (t.n < 30)).all() and t.value.notna().any() # fewer than 30 positives: not ranked
    few = [r for r in run.records if 'too small' in str(r.get('reason'))]
    assert len(few) == 2*t.value.isna().sum() - t[t.method == 'clip_phantom'].value.isna().sum()
