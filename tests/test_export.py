"Drafts in all formats: hostile text, an independent validator, missing extras, killed writes, the command."
import html
import json
import os
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_retrieval import make_rows

from cxr_explain import drafts as D
from cxr_explain import export as E
from cxr_explain.adapters import find_sources
from cxr_explain.cnn import build_cnn
from cxr_explain.config import MissingArtefact, Run, StaleArtefact
from cxr_explain.evidence import Reporter
from cxr_explain.findings import LABELS
from cxr_explain.images import write_dicom
from cxr_explain.index import create_index
from cxr_explain.retrieval import Space, as_vector
from cxr_explain.runner import main
from cxr_explain.towers import build_clip, clip_config, train_tokenizer

EXAMPLES = D.example_reports()
FILM, REGIONS = D.example_film()


@pytest.fixture(params=EXAMPLES)
def report(request):
    return EXAMPLES[request.param]


def test_schema_is_one_for_others_too(report):
    jsonschema = pytest.importorskip('jsonschema')
    jsonschema.Draft7Validator.check_schema(D.REPORT_SCHEMA)
    document = json.loads(json.dumps(D.report_json(report)))
    jsonschema.validate(document, D.REPORT_SCHEMA)
    for key in document:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in document.items() if k != key}, D.REPORT_SCHEMA)
        with pytest.raises(D.InvalidReport, match=key):
            D.validate_report({k: v for k, v in document.items() if k != key})


def leaves(x, path=()):
    if isinstance(x, dict | list):
        for k, v in x.items() if isinstance(x, dict) else enumerate(x):
            yield from leaves(v, (*path, k))
    else:
        yield path


@pytest.mark.parametrize('value', [None, True, 7, [], 'banana'])
def test_no_value_can_be_changed_unseen(value):
    made = json.dumps(D.report_json(EXAMPLES['sick']))
    free = {'indication', 'model', 'weights', 'generator', 'view', 'origin', 'image_id', 'note', 'reason', 'text', 'k',
            'prior', 'evidence', 'claims', 'by'}
    for path in leaves(json.loads(made)):
        d = json.loads(made)
        inner = d
        for k in path[:-1]:
            inner = inner[k]
        if inner[path[-1]] is value or inner[path[-1]] == value:
            continue
        inner[path[-1]] = value
        try:
            D.validate_report(d)
        except D.InvalidReport:
            continue
        assert {p for p in path if isinstance(p, str)} & free, f'{path} = {value!r} went unseen'


def test_page_is_well_formed_and_alone(report):
    page = D.report_html(report, FILM, REGIONS)
    body = page[page.index('<body'):page.index('</html>')]
    tree = ET.fromstring(body.replace('alt="the film with outlined regions, legend below">', 'alt="x"/>'))
    ids = {e.get('id') for e in tree.iter()}
    links = [e.get('href') for e in tree.iter('a')]
    assert links and all(h[0] == '#' and h[1:] in ids for h in links)
    said = html.escape(D.notice(report)) # on top, among the limits, at the end; never without the caution
    assert page.count(said) == page.count(D.DRAFT) == 3
    assert 'http' not in page.replace('http-equiv', '').replace('http://x.example/', '')


@pytest.mark.parametrize('formats', [(f,) for f in E.FORMATS])
def test_same_bytes_again(report, formats, tmp_path):
    a, b = (E.save_report(report, tmp_path/x, FILM, REGIONS, formats) for x in 'ab')
    E.open_files(a)
    assert [p.read_bytes() for p in a.values()] == [p.read_bytes() for p in b.values()]


@pytest.mark.parametrize('version', E.VERSIONS)
def test_bundle_says_what_the_report_says(report, version):
    bundle = E.fhir_bundle(report, version)
    by = {}
    for e in bundle['entry']:
        by.setdefault(e['resource']['resourceType'], []).append(e['resource'])
    main = by['DiagnosticReport'][0]
    assert main['status'] == 'preliminary' and len(main['result']) == len(by['Observation'])
    values = [o['valueCodeableConcept']['text'] for o in by['Observation']]
    labels = [o['code']['text'] for o in by['Observation']]
    positive = {x for x, v in zip(labels, values) if v == 'positive'}
    codes = {c['coding'][0]['code'] for c in main.get('conclusionCode', [])}
    assert codes == {E.ICD10[x][0] for x in positive}
    assert 'name' not in by['Patient'][0] and 'effectiveDateTime' not in json.dumps(bundle)


def test_pinned_codes(): # as read in RadLex 4.3 and LOINC; public code often swaps them
    wanted = {'Pneumonia': 'RID5350', 'Pneumothorax': 'RID5352', 'Atelectasis': 'RID28493',
              'Pleural Effusion': 'RID34539', 'Edema': 'RID4866', 'Consolidation': 'RID43255', 'Fracture': 'RID4650'}
    assert {k: E.RADLEX[k][0] for k in wanted} == wanted
    assert [c for c, _ in E.FILMS.values()] == ['36554-4', '36643-5']


def test_dates_only_when_given(tmp_path):
    from datetime import datetime, timedelta, timezone
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
    paths = E.save_report(EXAMPLES['sick'], tmp_path, FILM, REGIONS, ('fhir', 'dicom'), when=when)
    assert '2026-01-02T03:04:05+01:00' in paths['fhir'].read_text()
    ds = E.open_overlay(paths['dicom'])
    assert (ds.ContentDate, ds.ContentTime) == ('20260102', '030405') and ds.BurnedInAnnotation == 'YES'


def test_missing_extra(monkeypatch, tmp_path):
    for name in [m for m in sys.modules if m.split('.')[0] == 'highdicom'] + ['highdicom']:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cxr_explain\[export\]'"):
        E.save_report(EXAMPLES['sick'], tmp_path, FILM)
    assert list(tmp_path.iterdir()) == []
    E.save_report(EXAMPLES['sick'], tmp_path, FILM, formats=('text', 'html', 'json', 'fhir'))


@pytest.mark.parametrize('shape', [(32, 400), (400, 32), (17, 16), (900, 700)])
def test_pictures_of_any_shape(shape, tmp_path):
    film = np.linspace(0, 1, shape[0]*shape[1], dtype=np.float32).reshape(shape)
    heat = np.random.default_rng(0).random((8, 8))
    paths = E.save_report(EXAMPLES['sick'], tmp_path, film, {'M:pleural_effusion': heat}, ('dicom', 'html'))
    E.open_files(paths)


def test_empty_table():
    r = EXAMPLES['normal']
    empty = replace(r, table=replace(r.table, rows=(), sources={}), sentences=())
    document = D.validate_report(json.loads(json.dumps(D.report_json(empty))))
    assert document['summary']['label'] == 'nothing stated'
    assert len(E.fhir_bundle(empty)['entry']) == 4 and D.report_html(empty)


def test_outlines_and_findings_point_at_the_film(report):
    from datetime import datetime
    film, when = E.dicom_film(report, FILM), datetime(2026, 1, 2)
    lines = E.dicom_outlines(report, REGIONS, film, when)
    found = E.dicom_findings(report, REGIONS, film, when)
    for ds in (lines, found):
        assert ds.StudyInstanceUID == film.StudyInstanceUID and film.SOPInstanceUID in str(ds)
        assert 'DRAFT' in ds.SeriesDescription and ds.ContentDate == '20260102' and ds.PatientIdentityRemoved == 'YES'
    assert (found.VerificationFlag, found.PreliminaryFlag) == ('UNVERIFIED', 'PRELIMINARY')
    assert found.CompletionFlag == 'PARTIAL'
    assert str(found).count("'Finding'") == len(E.stated_rows(report))
    points = np.array(lines.GraphicAnnotationSequence[0].GraphicObjectSequence[0].GraphicData).reshape(-1, 2)
    centre = np.argwhere(REGIONS['M:pleural_effusion']).mean(0)[::-1]
    assert abs(points.mean(0) - centre).max() < 2


FLUID = LABELS.index('Pleural Effusion')


def nearly_fitted(): # in place of `fit_reporter`: every film has an effusion, and it is on the right
    side = dict(classes=['left', 'right'], coef=[[0.]*32]*2, bias=[0., 1.], least=0., labels=[FLUID])
    words = dict(sd=[1.]*14, side=side, zone={}, severity={})
    return dict(weights=[1., 0., 0., 0.], fusion=[[1., 0., 0.]]*14, words=words, change={}, sets=[[.1]*14]*2)


def untrained(run, folder):
    "A reporter of the real classes that has learnt nothing."
    torch.manual_seed(0)
    net, tower = build_cnn(dict(arch='resnet18', width=8)).eval(), dict(arch='resnet18', width=8)
    torch.nn.init.zeros_(net.fc.weight)
    net.fc.bias.data = torch.full((14,), -5.)
    net.fc.bias.data[FLUID] = 3.
    tokens = train_tokenizer(['small right pleural effusion', 'no edema'])
    clip = build_clip(clip_config(tokens, 64, tower, 16, 16, width=32, layers=1), tokens).eval()
    rows, emb = make_rows(20), as_vector(np.random.default_rng(0).normal(size=(20, 16)))
    cases = create_index(folder/'index', 'cases', 16, dict(patient_id='str', first='bool'), 'm')
    cases.add(rows.image_id.tolist(), emb, rows.findings.tolist(), rows[['patient_id']].assign(first=True))
    space = Space('clip', rows, emb, emb, rows.findings.tolist())
    return Reporter(run, net, np.ones(14), clip, dict(image=cases), space, None, nearly_fitted())


@pytest.fixture
def made(tmp_path, monkeypatch):
    "A run that can be opened; what would read its models gets untrained ones."
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path/'runs'))
    run = Run('evidence', 'smoke', 'made', seed=3)
    run.record('films', 20, n=20)
    run.save('models/reporter.json', {})
    run.finish()
    reporter = untrained(run, tmp_path)
    monkeypatch.setattr(E, 'load_reporter', lambda run: reporter)
    monkeypatch.setattr(E, 'load_bank', lambda run: {})
    return run


@pytest.fixture
def call(made, tmp_path, capsys):
    "The command: its exit status or error, what it printed, the files that it left."
    def do(*args):
        with pytest.raises(SystemExit) as e:
            main(['report', *map(str, args), '--run', 'made', '--out', str(tmp_path/'out')])
        files = sorted((tmp_path/'out').iterdir()) if (tmp_path/'out').exists() else []
        return e.value.code, capsys.readouterr().out, files
    return do


@pytest.fixture
def plates(tmp_path):
    "The drawn film, wider than high, in all kinds of file that can be read."
    pixels = (FILM[16:112]*255).round().astype(np.uint8)
    for name in ('film.png', 'film.jpg'):
        Image.fromarray(pixels).save(tmp_path/name)
    window = dict(WindowCenter=128, WindowWidth=256, PatientName='Doe^Jane', PatientID='id-4711')
    write_dicom(tmp_path/'film.dcm', pixels, 8, ViewPosition='AP', **window)
    write_dicom(tmp_path/'deep.dcm', pixels.astype(np.uint16)*16, 12, ViewPosition='PA', PatientName='Doe^Jane')
    write_dicom(tmp_path/'side.dcm', pixels, 8, ViewPosition='LL')
    return tmp_path


@pytest.mark.parametrize('name', ['film.png', 'film.jpg', 'film.dcm', 'deep.dcm'])
def test_from_any_file_to_all_files(name, call, plates):
    status, printed, files = call(plates/name, '--indication', 'Cough & <fever>')
    assert (status, len(files)) == (0, 5) and printed.startswith(E.DRAFT) and 'drawn films only' in printed
    assert [line.split(': ')[1] for line in printed.splitlines()[2:]] == [
        str(plates/'out'/(files[0].name.split('.')[0] + end)) for end in E.FORMATS.values()]
    paths = {f: next(p for p in files if p.name.endswith(end)) for f, end in E.FORMATS.items()}
    E.open_files(paths)
    report = E.open_draft(paths['json'])
    assert report.table.view == {'film.dcm': 'AP', 'deep.dcm': 'PA'}.get(name, 'unknown')
    assert (report.section('impression'), report.table.indication) == ('Right pleural effusion.', 'Cough & <fever>')
    assert 'M:pleural_effusion' in paths['text'].read_text()
    for path in files:
        assert not any(x in path.read_bytes() for x in (b'Doe^', b'id-4711', b'film.')), path


def test_one_film_one_id(made, plates):
    reporter, writer = E.load_reporter(made), E.make_writer(made)
    drafts = [E.draft_image(reporter, plates/name, writer) for name in ('film.png', 'film.dcm', 'film.jpg')]
    assert len({report.table.image_id for report, *_ in drafts}) == 2
    report, img, regions = drafts[0]
    assert img.shape == (96, 128) and {k: v.shape for k, v in regions.items()} == {'M:pleural_effusion': (48, 64)}
    prior = dict(prior=plates/'film.jpg', prior_report='Small right pleural effusion.')
    followed = E.draft_image(reporter, plates/'film.png', writer, **prior)[0]
    assert followed.table.prior == drafts[2][0].table.image_id
    assert any(x.kind == 'prior' for x in followed.table.sources.values()) == any(
        x.finding.change for x in followed.table.rows)


@pytest.mark.parametrize('args, words', [
    (['none.png'], 'no such file; fetch it'), (['cut.png'], 'cut.png'), (['side.dcm'], 'neither PA nor AP'),
    (['film.png', '--prior', 'side.dcm'], 'neither PA nor AP'),
    (['film.png', '--prior', 'film.dcm'], 'the same picture'),
    (['film.png', '--prior-report', 'film.png'], "can't decode"),
    (['film.png', '--prior-report', 'old.txt'], 'needs that film'), (['film.png', '--generator', 'chat'], '--url http'),
    (['film.png', '--generator', 'chat', '--url', 'http://x.example/v1', '--model', 'm'], 'remote=True'),
    (['film.png', '--generator', 'decoder'], 'cxr-explain reproduce')])
def test_a_clear_no_and_no_file(args, words, call, plates):
    (plates/'cut.png').write_bytes((plates/'film.png').read_bytes()[:400])
    (plates/'old.txt').write_text('Normal.')
    status, _, files = call(*(plates/a if '.' in a and '/' not in a else a for a in args))
    assert words in str(status) and not files


def test_runs_that_cannot_write(made, tmp_path, monkeypatch):
    opened = E.open_run(str(made.dir))
    assert (opened.dir, opened.profile) == (made.dir, made.profile) and opened.profile.seed == 3
    before = {p: p.stat().st_mtime_ns for p in made.dir.rglob('*')}
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path/'elsewhere'))
    assert E.open_run(str(made.dir)).dir == made.dir and not (tmp_path/'elsewhere').exists()
    assert before == {p: p.stat().st_mtime_ns for p in made.dir.rglob('*')}
    signed = made.dir/'models'/'reporter.json.meta.json'
    facts = json.loads(signed.read_text())
    signed.write_text(json.dumps(facts | dict(profile='0'*64)))
    with pytest.raises(ValueError, match='at a profile that this version does not have'):
        E.open_run(str(made.dir))
    signed.unlink()
    with pytest.raises(MissingArtefact, match='make it whole'):
        E.open_run(str(made.dir))


def test_stale_models_are_an_error_without_traceback(made, plates, monkeypatch, call):
    def stale(run): raise StaleArtefact('made by older code')
    monkeypatch.setattr(E, 'load_reporter', stale)
    status, _, files = call(plates/'film.png')
    assert status == 'cxr-explain: made by older code' and not files


REAL = os.environ.get('CXR_EXPLAIN_DATA', '')


@pytest.mark.skipif(not REAL, reason='CXR_EXPLAIN_DATA does not name a folder with real data sets')
def test_real_films(call, tmp_path):
    for source in find_sources(REAL):
        frontal = source.rows[source.rows.path.notna() & source.rows.view.isin(['PA', 'AP', 'FRONTAL'])]
        for path in frontal.path.iloc[:2]:
            status, printed, files = call(source.root/path, '--view', 'PA')
            assert status == 0 and len(files) >= 5 and os.path.basename(path) not in printed
            if not str(path).endswith('.jpg'): continue
            with Image.open(source.root/path) as film: pixels = np.asarray(film.convert('L'))
            Image.fromarray(pixels).save(tmp_path/'same.png')
            write_dicom(tmp_path/'same.dcm', pixels, 8, ViewPosition='PA', WindowCenter=128, WindowWidth=256)
            for other in ('same.png', 'same.dcm'): # the same film, so the same files again
                status, _, more = call(tmp_path/other, '--view', 'PA')
                assert (status, more) == (0, files)
            stem = files[0].name.split('.')[0]
            E.open_files({f: next(p for p in files if p.name == stem + end) for f, end in E.FORMATS.items()})
