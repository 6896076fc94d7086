"""What scores of reports must never do, across chapters: reward the reference's words, or judge a report by itself."""
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cxr_explain import claims, scoring
from cxr_explain.config import make_rng
from cxr_explain.evidence import EvidenceTable, Row, Source
from cxr_explain.findings import LABELS, Finding
from cxr_explain.generation import Report, Sentence, read_record, report_record
from cxr_explain.grammar import say, write_report

EDEMA = Finding('Edema', severity='mild')


def key(truths, texts):
    return claims.Key(truths, texts, np.arange(len(texts)), np.ones(len(texts)), np.zeros(len(texts), bool), 'truth')


def grammar_reports(n=40):
    made = []
    for i in range(n):
        rng = make_rng(0, 'test', i)
        said = [say('meniscus effusion', 'sure', ('left', 'right')[i % 2], 'basal', 'mild'), say('pneumonia', 'denied')]
        said = said[:1 + i % 3]
        made.append(write_report(said, rng, view='PA', sex='F', age=60, has_prior=False)['findings'])
    return [m for m in made if m]


def test_opposite_shares_words_and_no_facts():
    text, other = ['Pleural effusion.'], ['No pleural effusion.']
    k = key([claims.complete([Finding('Pleural Effusion')])], text)
    right, wrong = scoring.score_reports(text, k), scoring.score_reports(other, k)
    assert wrong['rouge_l', ''].value[0] > .7
    assert right['agreement', ''].value[0] == 1 and wrong['agreement', ''].value[0] == 0
    assert wrong['contradiction_rate', ''].value[0] == 1


def test_the_same_text_alarms_nobody_and_a_wrong_side_does():
    more = 'Possible trace apical pneumothorax.', 'The effusion is smaller.', 'Resolving pneumonia.'
    texts = [*grammar_reports(), *more]
    for t in texts: assert not any(v > 1e-9 for v in scoring.alarm(t, t).values()), t
    wrong = [(t, w) for t in texts if (w := scoring.perturb(t, 'wrong_side', make_rng(0, 'side')))]
    assert len(wrong) > 20
    assert np.mean([scoring.alarm(w, t)['verifier'] > 0 for t, w in wrong]) > .9


def test_grounding_survives_json():
    source = Source('C1.1', 'Edema.', 'x', (Finding('Edema'),))
    table = EvidenceTable('film', (Row(EDEMA, .8, ('C1.1',)),), {'C1.1': source})
    report = Report(table, (Sentence('There is edema.', 'findings', (), ('C1.1',)),))
    assert claims.grounding(report) == claims.grounding(read_record(json.loads(json.dumps(report_record(report)))))
    assert claims.grounding(report)['unsupported'] == 0


def test_hedging_does_not_pay():
    n = 20
    truths = [claims.complete([EDEMA])]*n + [claims.complete([])]*n
    hedge = ' '.join(f'Possible {label.lower()}.' for label in LABELS[1:13])
    k = key(truths, ['']*(2*n))
    honest, shy = ['Mild edema.']*n + ['Normal chest radiograph.']*n, [hedge]*(2*n)
    f1 = [claims.score_facts(t, k)['label_f1', 'micro14'].value[0] for t in (honest, shy)]
    assert f1[0] == 1 and f1[1] < .5


@pytest.mark.parametrize('kind', scoring.PERTURBATIONS)
def test_errors_are_made_and_seen(kind):
    texts = grammar_reports()
    made = [(t, scoring.perturb(t, kind, make_rng(0, kind, i))) for i, t in enumerate(texts)]
    made = [(t, e) for t, e in made if e]
    assert len(made) >= 5
    assert np.mean([scoring.alarm(e, t)['facts'] > 0 for t, e in made]) > .9


def test_rewording_is_no_error():
    texts = grammar_reports()
    made = [(t, r) for i, t in enumerate(texts) if (r := scoring.reword(t, make_rng(0, 'r', i)))]
    assert len(made) >= 10
    assert np.mean([scoring.alarm(r, t)['facts'] == 0 for t, r in made]) > .9


def test_same_seed_same_errors():
    text = grammar_reports()[0]
    one, two = (scoring.perturb(text, 'wrong_side', make_rng(1, 'x')) for _ in range(2))
    assert one == two


@pytest.mark.parametrize('text', ['', '   ', 'FINDINGS:', '...', '\u2603 \u2603', 'x'*3000])
def test_odd_texts(text):
    k = key([claims.complete([])], ['Normal chest.'])
    found = scoring.score_reports([text], k)
    assert found['bleu4', ''].value[0] == 0
    assert scoring.perturb(text, 'wrong_side', make_rng(0, 'x')) is None


def test_scores_of_other_packages_are_taken_from_the_right_place(monkeypatch):
    """Stand-ins that answer in the shapes of the packages, with one number a report in second or third place."""
    a, b = ['Edema.', 'Normal.'], ['No edema.', 'Normal.']
    seen = []

    class Scorer:
        def __init__(self, **options): seen.append(options)
        def __call__(self, hyps=None, refs=None):
            seen.append((hyps, refs))
            return .5, [0., 1.], 'more', 'and more'

    class Green(Scorer):
        def __call__(self, refs, hyps): return .5, .5, super().__call__(hyps, refs)[1], 'summary', 'table'

    class Tensor(list):
        def tolist(self): return list(self)

    fakes = dict(radgraph=dict(F1RadGraph=Scorer), f1chexbert=dict(F1CheXbert=Scorer), green_score=dict(GREEN=Green),
                 bert_score=dict(score=lambda h, r, **o: (seen.append(o), seen.append((h, r)), Tensor([0., 1.]))))
    for name, parts in fakes.items(): monkeypatch.setitem(sys.modules, name, SimpleNamespace(**parts))
    for name in ('radgraph_f1', 'chexbert_exact5', 'bertscore', 'green'):
        seen.clear()
        assert scoring.external_score(name, a, b).tolist() == [0, 1]
        assert seen[-1] == (a, b), f'{name}: reports and references in the wrong order'
    with pytest.raises(ValueError, match='chexbert_exact5'): scoring.external_score('chexbert_f1', a, b)

    def no_weights(**options): raise OSError('cannot be reached')
    monkeypatch.setitem(sys.modules, 'green_score', SimpleNamespace(GREEN=no_weights))
    with pytest.raises(RuntimeError, match='weights of .green_score. are not'): scoring.external_score('green', a, b)
