"What stands behind a row: whose cases, how many, which card, and what a conformal set promises. On fabricated films."
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_retrieval import make_rows, make_space

from cxr_explain import evidence as E
from cxr_explain import retrieval as R
from cxr_explain.calibration import conformal_sets
from cxr_explain.config import Run
from cxr_explain.findings import LABELS, Finding
from cxr_explain.knowledge import build_knowledge
from cxr_explain.train import save_model

EDEMA, FRACTURE, HEART = (LABELS.index(x) for x in ('Edema', 'Fracture', 'Cardiomegaly'))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path))
    run = Run('evidence', 'smoke')
    save_model(run, 'clip', torch.nn.Linear(2, 2), dict(arch='made'))
    return run


@pytest.fixture
def reporter(run):
    "What `find_cases` needs of one: cases of two films a patient, of which the first may be found."
    space = make_space(make_rows())
    cases = R.build_cases(run, space)
    own = space.gallery('train')
    r = SimpleNamespace(cases=cases, space=own, place=pd.Index(own.rows.image_id), y=R.score_targets(own.rows) == 1,
                        who=own.rows.patient_id.to_numpy(str), fitted=dict(weights=[1., 0., .5, -.5]))
    return r


def film(r, i, **p): # the i-th case's picture, shown to somebody who says: `EDEMA=.9`
    said = np.full(len(LABELS), .01)
    for name, value in p.items(): said[globals()[name]] = value
    return SimpleNamespace(patient_id=r.who[i], emb=r.space.img[i], p=said)


@pytest.mark.parametrize('i', range(0, 40, 5))
def test_cases_are_of_others_and_in_order_of_their_scores(reporter, i):
    f = film(reporter, i, EDEMA=.9)
    at = E.find_cases(reporter, f, 8)
    score = E.case_scores(reporter, f, at)
    assert len(set(at)) == len(at) == 8 and (reporter.who[at] != f.patient_id).all()
    assert (np.diff(score) <= 1e-9).all()
    assert np.array_equal(E.find_cases(reporter, f, 3), at[:3])


@pytest.mark.parametrize('shown', [{}, dict(EDEMA=.9), dict(EDEMA=.9, HEART=.7)])
def test_by_label_finds_films_that_state_what_is_shown(reporter, shown):
    f = film(reporter, 1, **shown)
    wanted = E.states(f.p) == 1 # with parents; "No Finding", if nothing else
    at, free = E.find_cases(reporter, f, 20, by_label=True), E.find_cases(reporter, f, 20)
    assert len(at) and reporter.y[at][:, wanted].any(1).all()
    assert not reporter.y[free][:, wanted].any(1).all(), 'the plain search finds others, too'
    assert (reporter.who[at] != f.patient_id).all() and len(set(at)) == len(at)
    allowed = np.flatnonzero(reporter.y[:, wanted].any(1) & (reporter.who != f.patient_id))
    assert len(at) == min(20, len(allowed)) and set(at) <= set(allowed)


def test_a_label_that_only_an_order_gave_does_not_count(reporter):
    f = film(reporter, 1, EDEMA=.9)
    at = E.find_cases(reporter, f, 20, by_label=True)
    reporter.y[at[0]] = False # as `Reporter` reads a report that says "report edema"
    assert at[0] not in E.find_cases(reporter, f, 20, by_label=True)


def test_bound_stops_where_the_ratio_says(reporter):
    f = film(reporter, 3, EDEMA=.9)
    every = E.find_cases(reporter, f, 10)
    score, sizes = E.case_scores(reporter, f, every), []
    for bound in (1.01, 1.1, 1.5, 9.):
        at = E.find_cases(reporter, f, 10, bound)
        assert np.array_equal(at, every[:len(at)]) and (score[0] < bound*score[1:len(at)]).all()
        assert len(at) == 10 or score[0] >= bound*score[len(at)] or score[len(at)] <= 0
        sizes.append(len(at))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize('k', [0, 5])
@pytest.mark.parametrize('bound', [1., .5, -2])
def test_a_bound_that_means_nothing_is_refused(reporter, k, bound):
    with pytest.raises(ValueError, match='give more than 1'): E.find_cases(reporter, film(reporter, 0), k, bound)


def test_no_cases_are_an_answer(reporter): assert len(E.find_cases(reporter, film(reporter, 0), 0, 1.5)) == 0


def patients(n, each, rng):
    rows = pd.DataFrame(dict(patient_id=np.repeat([f'p{k}' for k in range(n)], each), weight=1.))
    p = rng.random((len(rows), len(LABELS)))
    y = (rng.random(p.shape) < p).astype(float)
    return rows, y, p


def test_sets_hold_nine_of_ten_of_either_kind():
    rng = np.random.default_rng(0)
    rows, y, p = patients(1500, 2, rng) # several films a patient: one is drawn, or the promise would not hold
    q = E.fit_sets(y, p, rows)
    _, y, p = patients(4000, 1, rng)
    sets = conformal_sets(p, q)
    for value in (0, 1):
        held = np.array([sets[y[:, j] == value, j, value].mean() for j in range(len(LABELS))])
        assert abs(held - .9).max() < .04 and abs(held.mean() - .9) < .01, held
    assert .1 < (sets.sum(2) == 1).mean() < .9, 'some films are told one answer, others not'


def test_sets_promise_nothing_from_too_few():
    rng = np.random.default_rng(1)
    rows, y, p = patients(300, 1, rng)
    y[:, EDEMA] = 0
    y[:5, EDEMA] = 1        # nine of ten cannot be read off five
    y[:, FRACTURE] = np.nan # never annotated
    q = E.fit_sets(y, p, rows)
    assert q[1, EDEMA] == 2 and q[0, EDEMA] < 1 and (q[:, FRACTURE] == 2).all()
    sets = conformal_sets(p, q)
    assert sets[:, EDEMA, 1].all() and sets[:, FRACTURE].all(), 'never excluded'


@pytest.fixture
def cards(run): return SimpleNamespace(knowledge=build_knowledge(run), known={})


def test_cards_are_those_of_the_finding_and_its_words(cards):
    names = set(cards.knowledge.cards)
    told = {}
    for label in LABELS[1:]:
        name = label.lower().replace(' ', '_')
        if name not in names: continue
        found = E.card_sources(cards, Finding(label))
        told[label] = [s.id for s in found]
        assert found[0].id == f'K:{name}.definition' and 1 <= len(found) <= 2
        assert all(s.id.split('.')[0][2:] in names and s.text for s in found)
    assert len(told) >= 12
    fluid = {side: [s.id for s in E.card_sources(cards, Finding('Pleural Effusion', severity=side))]
             for side in (None, 'severe', 'trace')}
    assert len({tuple(v) for v in fluid.values()}) > 1, 'the words of the row choose the second sentence'


def test_cards_are_looked_up_once_and_whatever_has_changed(cards):
    f = Finding('Pleural Effusion', side='left')
    first = E.card_sources(cards, f)
    cards.knowledge = replace(cards.knowledge, index=None) # a second search would fail
    assert E.card_sources(cards, replace(f, change='worse')) is first


def test_without_a_card_there_is_no_source(cards):
    del cards.knowledge.cards['edema']
    assert E.card_sources(cards, Finding('Edema')) == []
    assert E.card_sources(SimpleNamespace(knowledge=None, known={}), Finding('Fracture')) == []
