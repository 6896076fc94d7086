"Drafts in all formats: hostile text, an independent validator, missing extras, killed writes, the command."
import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from cxr_explain import drafts as D
from cxr_explain import export as E

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
    assert page.count(D.DRAFT) == 2 + page.count(f'{D.DRAFT}</li>') + page.count(f'{D.DRAFT} <span')
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
