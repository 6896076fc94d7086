"""Metrics, calibration, comparison and scores against other libraries and brute force, on random cases."""
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from cxr_explain import baselines, calibration, comparison, metrics, scores
from cxr_explain.config import Run, get_profile


def case(seed, n=120, ties=True, labels=1):
    "Random labels, scores with ties, patients of one to many films, uneven weights."
    rng = np.random.default_rng(seed)
    y = (rng.random((n, labels)) < .35) + 0.
    p = np.clip(rng.beta(2, 3, (n, labels)) + .2*y, 0, 1)
    return y, np.round(p, 1) if ties else p, rng.integers(0, n//2, n), rng.gamma(1, size=n) + .05


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('ties', [True, False])
def test_values_are_those_of_scikit_learn(seed, ties):
    y, p, g, w = case(seed, ties=ties)
    flat, hot = (y[:, 0], p[:, 0]), p[:, 0] >= .5
    assert np.isclose(metrics.auroc(y, p, g, w).value, sk.roc_auc_score(*flat, sample_weight=w), atol=1e-12)
    assert np.isclose(metrics.average_precision(y, p, g, w).value, sk.average_precision_score(*flat, sample_weight=w))
    assert np.isclose(calibration.brier(y, p, g, w).value, sk.brier_score_loss(*flat, sample_weight=w))
    inner = np.clip(p, 1e-6, 1 - 1e-6)
    assert np.isclose(calibration.log_loss(y, inner, g, w).value, sk.log_loss(y[:, 0], inner[:, 0], sample_weight=w))
    for name, f in dict(f1=sk.f1_score, sensitivity=sk.recall_score, precision=sk.precision_score,
                        accuracy=sk.accuracy_score).items():
        assert np.isclose(metrics.at_threshold(name, y, p, .5, g, w).value, f(y[:, 0], hot, sample_weight=w)), name
    assert np.isclose(metrics.at_threshold('specificity', y, p, .5, g, w).value,
                      sk.recall_score(1 - y[:, 0], ~hot, sample_weight=w))


RANK = {'auroc': (metrics.auroc, metrics.weighted_auroc), 'ap': (metrics.average_precision, metrics.weighted_ap)}

@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('name', RANK)
def test_influence_is_the_derivative(seed, name):
    "Before the correction for few patients, `d` is what the value changes when one patient's weight does."
    metric, weighted = RANK[name]
    y, p, g, w = case(seed, 80)
    e = metric(y, p, g, w)
    codes, h = pd.factorize(g)[0], 1e-6
    def value(k, h): return weighted(y[:, 0], p[:, 0], w*(1 + h*(codes == k)))
    slope = np.array([(value(k, h) - value(k, -h))/(2*h) for k in range(codes.max() + 1)])
    bound = np.sqrt(1/(1 - 1/e.k.min(0)))
    assert np.corrcoef(slope, e.d[:, 0])[0, 1] > .999
    assert (np.abs(e.d[:, 0]) <= np.abs(slope)*bound*1.05 + 1e-3).all()


@pytest.mark.parametrize('name', RANK)
def test_error_agrees_with_the_bootstrap(name):
    metric, weighted = RANK[name]
    y, p, g, w = case(3, 2000, ties=False)
    drawn = metrics.bootstrap(weighted, y, p, g, w, draws=1000)
    assert abs(drawn.std(0)/metrics.standard_error(metric(y, p, g, w)) - 1) < .1


def test_bootstrap_is_the_library_on_the_same_draws():
    y, p, g, _ = case(5, 90, labels=2)
    y[:4, 1] = np.nan
    drawn = metrics.bootstrap(metrics.weighted_auroc, y, p, g, draws=20, block=500)
    codes = pd.factorize(g)[0]
    counts = metrics.draw_counts(codes.max() + 1, 20, np.random.default_rng(0))
    assert (counts.sum(0) == codes.max() + 1).all()
    for b in range(20):
        rows = np.repeat(np.arange(90), counts[codes, b])
        for j in (0, 1):
            known = rows[~np.isnan(y[rows, j])]
            assert np.isclose(drawn[b, j], sk.roc_auc_score(y[known, j], p[known, j]))
    assert np.array_equal(drawn, metrics.bootstrap(metrics.weighted_auroc, y, p, g, draws=20), equal_nan=True)


def obuchowski(y, models, g):
    "Covariance of AUROCs from clustered data, Obuchowski 1997, by loops."
    psi = [np.array([[(a > b) + .5*(a == b) for b in p[y == 0]] for a in p[y == 1]], float) for p in models]
    ids, i10, i01 = np.unique(g), len(np.unique(g[y == 1])), len(np.unique(g[y == 0]))
    def by_patient(v, c): return np.array([[(u - u.mean())[g[y == c] == k].sum() for k in ids] for u in v])
    x, z = (by_patient([f.mean(c) for f in psi], c)/(y == c).sum() for c in (1, 0))
    i = len(ids)
    return i10/(i10 - 1)*x @ x.T + i01/(i01 - 1)*z @ z.T + i/(i - 1)*(x @ z.T + z @ x.T)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('mixed', [False, True])
def test_clustered_delong(seed, mixed):
    rng = np.random.default_rng(seed)
    y, p, g = metrics.simulate(rng, 25, 45, .75, films=3, rho=.6, models=2)
    p = np.round(p, 1)
    if mixed: y = y*(rng.random(len(y)) < .6)
    cov = obuchowski(y, p.T, g)
    a, b = (metrics.auroc(y, q, g) for q in p.T)
    d = comparison.difference(a, b)
    own = np.array([metrics.standard_error(e)[0] for e in (a, b, d)])
    paper = np.sqrt([cov[0, 0], cov[1, 1], cov[0, 0] + cov[1, 1] - 2*cov[0, 1]])
    assert np.allclose(own, paper, rtol=.03 if mixed else 1e-10)


def test_copies_of_films_change_nothing():
    y, p, _, w = case(2, 100)
    one = metrics.auroc(y, p, None, w)
    twice = metrics.auroc(np.repeat(y, 3, 0), np.repeat(p, 3, 0), np.repeat(np.arange(100), 3), np.repeat(w, 3))
    assert np.allclose(one.value, twice.value) and np.allclose(metrics.interval(one), metrics.interval(twice))
    plain = metrics.auroc(np.repeat(y, 3, 0), np.repeat(p, 3, 0), None, np.repeat(w, 3))
    assert metrics.standard_error(plain) < .65*metrics.standard_error(one)


def test_scale_of_weights_and_order_of_rows_change_nothing():
    y, p, g, w = case(4, 300, labels=3)
    y[::7, 1] = np.nan
    order = np.random.default_rng(0).permutation(300)
    for metric in (metrics.auroc, metrics.average_precision, calibration.brier):
        a, b = metric(y, p, g, w), metric(y[order], p[order], g[order], 10*w[order])
        assert np.allclose(a.value, b.value) and np.allclose(metrics.interval(a), metrics.interval(b))


@pytest.mark.parametrize('y', [[1, 1, 1], [0, 0, 0], [np.nan]*3, [1, np.nan, np.nan]])
def test_degenerate_labels_are_nan_not_errors(y):
    p = [.2, .5, .9]
    e = metrics.auroc(y, p)
    assert np.isnan(e.value).all() and np.isnan(metrics.interval(e)).all() and (metrics.standard_error(e) == 0).all()
    assert np.isnan(comparison.p_value(comparison.difference(e, e))).all()
    assert np.isnan(metrics.macro(e).value).all()
    t = comparison.evaluate(y, p, labels=['Edema'], thresholds=[.5], few=1)
    assert t.value.isna().all() and t.reason.notna().all()


def test_one_patient_has_no_interval():
    y, p, *_ = case(1, 50)
    assert np.isnan(metrics.interval(metrics.auroc(y, p, np.zeros(50)))).all()


@pytest.mark.parametrize('change, message', [
    (dict(y=[1, 0, -1]), 'label -1'), (dict(y=[1, 0, .5]), 'label 0.5'), (dict(p=[.1, np.nan, .2]), 'not finite'),
    (dict(p=[.1, .2]), 'shape'), (dict(weights=[1, -1, 1]), 'positive'), (dict(weights=[1, 1]), '2 weights'),
    (dict(patients=['a', None, 'b']), 'patient is missing'), (dict(patients=['a', 'b']), '2 patients'),
    (dict(y=[], p=[]), 'no films')])
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message): metrics.auroc(**dict(y=[1, 0, 1], p=[.1, .2, .3]) | change)


def test_nan_score_of_an_unscored_label_is_fine():
    assert metrics.auroc([1, 0, np.nan], [.9, .1, np.nan]).value == 1


@pytest.mark.parametrize('kind', ['auroc', 'share'])
@pytest.mark.parametrize('k', [2, 5, 30, 49, 50, 400])
@pytest.mark.parametrize('value', [0, .02, .5, .95, .999, 1])
def test_limits_enclose_the_value_within_0_and_1(kind, k, value):
    d = np.full((k, 1), np.sqrt(value*(1 - value))/k)
    e = metrics.Estimate(np.array([value]), d, np.array([[k], [4.*k]]), kind)
    low, high = metrics.interval(e).ravel()
    assert 0 <= low <= value <= high <= 1 and low < high


def test_fifty_is_no_cliff():
    def width(k): return np.ptp(metrics.interval(metrics.Estimate(
        np.array([.85]), np.full((1, 1), np.sqrt(.85*.15/(3.2*k))), np.array([[k], [10.*k]]), 'auroc')))
    assert .85 < width(50)/width(49.999) < 1.15


@pytest.mark.parametrize('positives, truth', [(5, .85), (5, .95), (12, .95), (50, .85)])
def test_clustered_intervals_hold(positives, truth):
    held = []
    for i in range(150):
        y, p, g = metrics.simulate(np.random.default_rng([positives, i]), positives, 150, truth, films=2, rho=.7)
        low, high = metrics.interval(metrics.auroc(y, p, g)).ravel()
        held.append(low <= truth <= high)
    assert np.mean(held) > .9


def test_sensitivity_of_clusters_holds_with_few_positives():
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        found = np.repeat(rng.random(12) < .9, 3) ^ (rng.random(36) < .05)
        low, high = metrics.interval(metrics.ratio(found, np.ones(36), np.repeat(range(12), 3))).ravel()
        held.append(low <= .9*.95 + .1*.05 <= high)
    assert np.mean(held) > .9


def test_thresholds_are_optimal():
    y, p, _, w = case(7, 200)
    for rule, value in dict(f1=lambda t: metrics.at_threshold('f1', y, p, [t], weights=w).value[0],
                            youden=lambda t: sum(metrics.at_threshold(k, y, p, [t], weights=w).value[0]
                                                 for k in ('sensitivity', 'specificity'))).items():
        best = metrics.fit_thresholds(y, p, 'calibrate', w, rule)[0]
        assert value(best) >= max(value(t) for t in np.unique(p)) - 1e-9


@pytest.mark.parametrize('fit', [
    lambda y, p, part: metrics.fit_thresholds(y, p, part), lambda y, p, part: calibration.fit_temperature(y, p, part),
    lambda y, p, part: calibration.fit_isotonic(y, p, part), lambda y, p, part: calibration.fit_conformal(y, p, part),
    lambda y, p, part: calibration.fit_risk_threshold(y, p, part),
    lambda y, p, part: scores.fit_map_threshold([p], [y], part)])
@pytest.mark.parametrize('part', ['test', 'train', 'select', 'external'])
def test_nothing_is_fitted_on_another_part(fit, part):
    y, p, *_ = case(1, 40)
    for parts in (part, ['calibrate']*39 + [part]):
        with pytest.raises(ValueError, match=part): fit(y, p, parts)
    fit(y, p, ['calibrate']*40)


def test_temperature_is_that_of_scikit_learn():
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    y, p, _ = calibration.toy_probabilities(np.random.default_rng(0), 1500)
    z = np.log(p/(1 - p))
    class Identity(ClassifierMixin, BaseEstimator):
        def fit(self, x, y): self.classes_, self.fitted_ = np.array([0, 1]), True; return self
        def decision_function(self, x): return np.asarray(x)[:, 0]
        def predict(self, x): return (np.asarray(x)[:, 0] > 0).astype(int)
    model = FrozenEstimator(Identity().fit(z[:, None], y))
    theirs = CalibratedClassifierCV(model, method='temperature').fit(z[:, None], y.astype(int))
    t = calibration.fit_temperature(y, z, 'calibrate')
    assert np.allclose(theirs.predict_proba(z[:, None])[:, 1], 1/(1 + np.exp(-z/t)), atol=2e-3)


def apart(n=5):
    "A calibrate part that happens to be separated, and a test part that is not."
    rng = np.random.default_rng(0)
    y, z = np.repeat([1., 0.], [n, 40]), np.r_[rng.uniform(1, 2, n), rng.uniform(-8, 0, 40)]
    y_test = (rng.random(2000) < .1) + 0.
    return y, z, y_test, -1.5 + 2*y_test + 1.5*rng.normal(size=2000)


def test_temperature_of_a_separable_part():
    "The bound of the search is not reached, no probability saturates, and the test part loses nothing."
    y, z, y_test, z_test = apart()
    t = calibration.fit_temperature(y, z, 'calibrate')
    p = 1/(1 + np.exp(-z_test/t))
    assert .1 < t < 10 and len(np.unique(p)) == len(np.unique(z_test))
    assert metrics.auroc(y_test, p).value == metrics.auroc(y_test, z_test).value
    def loss(t): return calibration.log_loss(y_test, 1/(1 + np.exp(-z_test/t))).value
    assert loss(t) < 1.5*loss(1) and loss(t) < .5*loss(np.exp(-4))
    for w in (np.full(45, 7.), np.r_[np.full(5, .1), np.full(40, 3.)]):
        s = calibration.fit_temperature(y, z, 'calibrate', w)
        assert .1 < s < 10 and np.isclose(s, calibration.fit_temperature(y, z, 'calibrate', 5*w), rtol=1e-6)


def test_nothing_known_is_nan():
    p = np.random.default_rng(0).random((3, 2))
    curve = calibration.fit_isotonic(np.full((3, 2), [[np.nan, 1]]), p, 'calibrate')
    assert np.isnan(calibration.apply_isotonic(curve, [[.5, .5]])).tolist() == [[True, False]]


@pytest.mark.parametrize('bins', [2, 3, 10])
def test_ties_stay_in_one_bin_at_the_cut(bins):
    "As few films as possible are on the wrong side: a value that reaches the cut stays below it."
    p = np.repeat([.1, .4, .8], [30, 30, 30])
    b = calibration._bin(p, calibration.bin_edges(p, bins, adaptive=True))
    sizes = {2: [60, 30]}.get(bins, [30, 30, 30])
    assert np.bincount(b).tolist() == sizes


def test_calibration_error_and_diagram_are_those_of_scikit_learn():
    from sklearn.calibration import calibration_curve
    y, p, _ = calibration.toy_probabilities(np.random.default_rng(1), 3000)
    seen, said = calibration_curve(y, p, n_bins=10)
    t = calibration.reliability(y, p, bins=10, adaptive=False)
    assert np.allclose(t.seen, seen) and np.allclose(t.said, said)
    assert np.isclose(calibration.calibration_error(y, p, debiased=False)[0], np.average(abs(seen - said), weights=t.n))


@pytest.mark.parametrize('adaptive', [False, True])
def test_weights_of_the_calibration_error_are_counts(adaptive):
    y, p, _ = calibration.toy_probabilities(np.random.default_rng(2), 300)
    w = np.random.default_rng(3).integers(1, 4, 300)
    rows = np.repeat(np.arange(300), w)
    a = calibration.calibration_error(y, p, None, w, adaptive=adaptive)
    b = calibration.calibration_error(y[rows], p[rows], rows, adaptive=adaptive)
    assert np.allclose(a, b, atol=1e-9)


def test_conformal_coverage_is_as_promised_on_average():
    rng, held, threes = np.random.default_rng(0), [], np.full(300, 3.)
    for _ in range(300):
        y, p, _ = calibration.toy_probabilities(rng, 300)
        keep = np.r_[np.flatnonzero(y == 1)[:19], np.flatnonzero(y == 0)[:40]]
        q = calibration.fit_conformal(y[keep], p[keep], 'calibrate')
        y, p, _ = calibration.toy_probabilities(rng, 300)
        held.append(calibration.set_coverage(y, calibration.conformal_sets(p, q)).value[0])
        assert calibration.conformal_quantile(p, .1) == calibration.conformal_quantile(p, .1, threes)
    assert .885 < np.mean(held) < .915, 'with 19 positives the promise is exact: 18 of 20'


def test_aurc_has_its_bounds():
    rng = np.random.default_rng(0)
    wrong, sure = (rng.random(500) < .2) + 0., rng.random(500)
    oracle, worst = calibration.aurc(wrong, -wrong), calibration.aurc(wrong, wrong)
    assert oracle < calibration.aurc(wrong, sure) < worst
    order, sure = rng.permutation(500), np.round(sure, 1)
    assert np.isclose(calibration.aurc(wrong, sure), calibration.aurc(wrong[order], sure[order])), 'ties'


def test_holm_is_that_of_statsmodels():
    multipletests = pytest.importorskip('statsmodels.stats.multitest').multipletests
    for seed in range(20):
        p = np.random.default_rng(seed).beta(.3, 2, 14)
        assert np.allclose(comparison.holm(p), multipletests(p, method='holm')[1])


def test_equivalence_is_two_t_tests():
    x = np.random.default_rng(0).normal(.002, .05, 80)
    e = metrics.ratio(x, np.ones(80), kind='mean')
    lower = stats.ttest_1samp(x, -.01, alternative='greater').pvalue
    upper = stats.ttest_1samp(x, .01, alternative='less').pvalue
    t = comparison.equivalence(e, .01).iloc[0]
    assert np.isclose(t.p_equivalent, max(lower, upper)) and np.isclose(t.p_not_worse, lower)
    assert np.allclose([t.low, t.high], stats.ttest_1samp(x, 0).confidence_interval(.9))


def test_recall_and_others_are_those_of_torchmetrics():
    tm, torch = (pytest.importorskip(name) for name in ('torchmetrics.functional', 'torch'))
    y, p, *_ = case(9, 200, ties=False)
    own = calibration.calibration_error(y, p, debiased=False)[0]
    theirs = tm.classification.binary_calibration_error(*map(torch.tensor, (p[:, 0], y[:, 0].astype(int))), n_bins=10)
    assert np.isclose(own, float(theirs), atol=1e-5)
    rng = np.random.default_rng(0)
    sim, right = rng.random((20, 30)), rng.random((20, 30)) < .2
    right[:, 0] = True
    def each(f, **kw): return np.mean([float(f(torch.tensor(s), torch.tensor(r), **kw)) for s, r in zip(sim, right)])
    assert np.isclose(scores.recall_at(5, sim, right).value, each(tm.retrieval.retrieval_hit_rate, top_k=5))
    assert np.isclose(scores.precision_at(5, sim, right).value, each(tm.retrieval.retrieval_precision, top_k=5))
    assert np.isclose(scores.reciprocal_rank(sim, right).value, each(tm.retrieval.retrieval_reciprocal_rank))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path))
    return Run('comparison')


def test_evaluate_counts_and_records(run):
    y, p, g, w = case(6, 400, labels=3)
    y[:, 2] = 0; y[:10, 0] = np.nan
    t = comparison.evaluate(y, p, g, w, np.full(3, .5), ['Edema', 'Fracture', 'Pneumonia'])
    again = comparison.evaluate(y, p, g, w, np.full(3, .5), ['Edema', 'Fracture', 'Pneumonia'])
    pd.testing.assert_frame_equal(t, again)
    mean = t[t.finding.isna()].set_index('name')
    assert (mean.left_out == 1).all() and mean.labels.eq(2).all()
    expected = np.mean([sk.roc_auc_score(y[10:, 0], p[10:, 0], sample_weight=w[10:]),
                        sk.roc_auc_score(y[:, 1], p[:, 1], sample_weight=w)])
    assert np.isclose(mean.value['auroc_macro'], expected)
    low = t[t.value.notna() & ~(t.finding.isna() & (t.name == 'ece'))]
    assert (low.low <= low.value + 1e-12).all() and (low.value <= low.high + 1e-12).all()
    comparison.record_scores(run, t, 'cnn', 'test', 'truth', method='as is')
    assert {r['reason'] for r in run.records if r.get('finding') == 'Pneumonia'} == {
        'n too small: fewer than 30 positives or negatives'}
    assert all(r['against'] == 'truth' and r['method'] == 'as is' and r['n'] >= 0 for r in run.records)
    run.finish()


def test_mean_calibration_error_has_no_limits_and_labels_are_those_with_a_value(run):
    y, p, g, w = case(6, 400, labels=3)
    names = ['Edema', 'Fracture', 'Pneumonia']
    t = comparison.evaluate(y, p, g, w, [.5, np.nan, .5], names, draws=20)
    mean = t[t.finding.isna()].set_index('name')
    assert mean.labels['f1_macro'] == 2 and mean.left_out['f1_macro'] == 1 and mean.labels['auroc_macro'] == 3
    assert np.isnan(mean.low['ece']) and mean.value['ece'] > 0
    comparison.record_scores(run, t, 'cnn', 'test', 'truth')
    kept = [r for r in run.records if r.get('no_interval')]
    assert [(r['name'], r['low'], r.get('finding')) for r in kept] == [('ece', None, None)]
    none = comparison.evaluate(y, p, g, w, [np.nan]*3, names, draws=2).query("name == 'f1_macro'").iloc[0]
    assert none.labels == 0 and none.reason == 'not defined'


def test_positives_of_one_patient_are_one(run):
    y, p = np.r_[1, 1, np.zeros(20)], np.linspace(1, 0, 22)
    g = np.r_[0, 0, np.arange(1, 21)]
    assert metrics.enough(y, 2).all() and not metrics.enough(y, 2, g).any()
    t = comparison.evaluate(y, p, g, labels=['Edema'], few=2, draws=5)
    assert t.value.isna().all()
    comparison.record_scores(run, t, 'cnn', 'test', 'truth')
    all_of_one = comparison.evaluate(y, p, np.zeros(22), labels=['Edema'], few=1, draws=5)
    comparison.record_scores(run, all_of_one, 'cnn', 'test', 'truth')
    assert all(r['reason'] for r in run.records if r['value'] is None)
    weights = np.r_[1, 1e-12, np.ones(20)] # two patients on paper, one in effect
    t = comparison.evaluate(y, p, None, weights, labels=['Edema'], few=2, draws=5)
    comparison.record_scores(run, t, 'cnn', 'test', 'truth')


def test_tables_without_value_or_limits_are_recorded_empty(run):
    maps, masks = np.ones((4, 8, 8)), np.zeros((4, 8, 8), bool)
    masks[:, 2:4, 2:4] = True
    scores.record_table(run, scores.localisation_table(maps, masks, threshold=.5))
    assert [r['reason'] for r in run.records] == ['undefined']*5
    scores.record_table(run, scores.localisation_table(np.random.default_rng(0).random((4, 8, 8)), masks, ['amy']*4))
    assert [r['reason'] for r in run.records[5:]] == ['too few patients']*4
    with pytest.raises(ValueError, match='every map is undefined'): scores.fit_map_threshold(maps, masks, 'calibrate')


def test_a_perfect_matcher_reaches_the_ceiling_of_copies():
    rng = np.random.default_rng(0)
    content = rng.integers(0, 12, 40)
    own, copies = np.eye(40, dtype=bool), (content[:, None] == content).sum(1)
    t = scores.retrieval_table((content[:, None] == content)*1., own, copies=copies)
    assert np.allclose(t.value, t.ceiling)
    worst = scores.retrieval_table((content[:, None] == content)*1., own)
    assert (worst.value <= t.value).all() and worst.value[0] < .5*t.value[0]
    sim = rng.random((40, 12))[:, content]
    shuffled = [scores.retrieval_table(sim + 1e-9*rng.random((40, 40)), own).value for _ in range(400)]
    assert np.allclose(np.mean(shuffled, 0), scores.retrieval_table(sim, own, copies=copies).value, atol=.015)
    flat = scores.retrieval_table(np.zeros((40, 40)), own, copies=np.ones(40, int))
    assert flat.value.max() < .03, 'what ties and is no copy stands before'


def test_draws_without_a_value_are_no_evidence():
    rng = np.random.default_rng(0)
    y, a, b = np.r_[1., np.zeros(29)], rng.random(30), rng.random(30)
    t = comparison.paired_bootstrap(metrics.weighted_ap, y, a, b, draws=300).iloc[0]
    assert 150 < t.n < 230 and t.p >= 2/(t.n + 1)
    t = comparison.paired_bootstrap(metrics.weighted_ap, 0*y, a, b, draws=30).iloc[0]
    assert t.n == 0 and np.isnan([t.p, t.low, t.high]).all()


def test_no_error_seen_in_few_is_no_certainty():
    y = np.r_[np.ones(3), np.zeros(40)]
    clear, other, flat = (metrics.auroc(y, p) for p in (y, y + np.linspace(0, .5, 43), 0*y))
    for d in (comparison.difference(clear, other), comparison.difference(clear, flat)):
        e = comparison.equivalence(d).iloc[0]
        assert np.isnan([*comparison.p_value(d), *metrics.interval(d).ravel(), e.p_equivalent, e.p_not_worse]).all()
    d = comparison.difference(clear, clear, same=True)
    e = comparison.equivalence(d).iloc[0]
    assert comparison.p_value(d) == 1 and e.p_equivalent == 0 and (metrics.interval(d) == 0).all()
    pairs = comparison.compare_models(y, dict(a=y, b=y, c=y + np.linspace(0, .5, 43)), few=3).set_index('pair')
    assert pairs.p['a - b'] == 1 and np.isnan(pairs.p['a - c'])


def test_a_mean_over_twin_labels_is_no_more_certain_than_one():
    "Fourteen copies of a label are one label: same limits, same p."
    y, p, *_ = case(8, 60, ties=False)
    q = np.random.default_rng(8).random((60, 1))
    one, many = ([metrics.macro(metrics.auroc(np.tile(y, k), np.tile(s, k))) for s in (p, q)] for k in (1, 14))
    assert np.allclose(metrics.interval(one[0]), metrics.interval(many[0]))
    a, b = comparison.difference(*one), comparison.difference(*many)
    assert np.allclose(metrics.interval(a), metrics.interval(b))
    assert np.allclose(comparison.p_value(a), comparison.p_value(b))
    assert np.allclose(comparison.equivalence(a), comparison.equivalence(b))


def test_counts_may_be_weights():
    y, p, *_ = case(3, 50)
    w = np.random.default_rng(0).integers(1, 4, 50)
    assert np.isclose(metrics.weighted_ap(y[:, 0], p[:, 0], w), metrics.weighted_ap(y[:, 0], p[:, 0], w + 0.))


def test_saturated_probabilities_may_be_ranked_by_their_logits():
    y, p, *_ = case(3, 200, ties=False)
    z = 400*p
    t = comparison.evaluate(y, 1/(1 + np.exp(-z)), labels=['Edema'], draws=2, ranks=z)
    assert t[t.name == 'auroc'].value.iloc[0] == metrics.auroc(y, p).value[0]


def test_share_of_a_gap_that_may_be_nothing():
    draw = .004*np.random.default_rng(0).normal(size=(3, 500))
    def share(m, f, t): return baselines.share_of_gap(m, f, t, np.array([[m], [f], [t]]) + draw)
    assert np.isclose(share(.85, .8, .9)['value'], .5) and share(.85, .8, .9)['low'] > .3
    for m, f, t in ((.7, .9, .85), (.95, .89, .9), (.9, .9, .9)):
        assert share(m, f, t)['value'] is None and 'undefined' in share(m, f, t)['reason']
    assert baselines.share_of_gap(.8, .7, .9, np.full((3, 5), np.nan))['value'] is None


def test_missing_age_is_that_of_the_fit():
    rows = pd.DataFrame(dict(age=[np.nan, 80.], sex='F', view='PA', part='train'))
    train = pd.DataFrame(dict(age=[30., 50.], sex='F', view='PA', part='train'))
    assert baselines.demographic_features(rows, train)[0, 0] == 2 and baselines.demographic_features(rows)[0, 0] == 4


def test_gates_reach_the_command(run):
    from cxr_explain.publish import failed_gates
    comparison.gate(run, 'passed', .9, .85, .95, at_least=.8, n=100)
    comparison.gate(run, 'untried', .9, .1, .95, at_least=.8, n=3, need=30)
    comparison.gate(run, 'failed', .9, .75, .95, at_least=.8, n=100)
    run.finish()
    assert [r['gate'] for r in failed_gates(run.dir)] == ['failed']


def test_few_positives_follows_the_profile():
    assert [metrics.few_positives(get_profile(p)) for p in ('smoke', 'phantom', 'real')] == [2, 30, 30]


def test_random_maps_score_chance():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((300, 16, 16)), np.zeros((300, 16, 16), bool)
    masks[:, 4:9, 5:12] = True
    t = scores.localisation_table(maps, masks).set_index('name')
    assert ((t.low <= t.chance*1.02) & (t.chance*.98 <= t.high)).all()
    maps[0] = 1
    assert (scores.localisation_table(maps, masks).undefined == 1).all()


def test_tied_maps_count_in_proportion():
    "A map of few levels, as superpixels give, scores what random breaking of ties gives on average."
    rng = np.random.default_rng(0)
    heat, mask = rng.integers(0, 3, (12, 12)) + 0., rng.random((12, 12)) < .2
    broken = [scores.iou_at_area(heat + 1e-6*rng.random((12, 12)), mask) for _ in range(400)]
    assert abs(np.mean(broken) - scores.iou_at_area(heat, mask)) < .01


def test_bootstrap_is_fast_enough():
    "1,000 draws of 14 labels of 5,000 films in 2 seconds of one core; twice that is allowed for a slow machine."
    import time
    rng = np.random.default_rng(0)
    y, p, g = (rng.random((5000, 14)) < .1) + 0., rng.random((5000, 14)), np.arange(5000)//2
    start = time.process_time()
    metrics.bootstrap(metrics.weighted_auroc, y, p, g)
    assert time.process_time() - start < 4
