"""Every adapter on a fabricated tree of its layout, whole and broken; real sets if CXR_EXPLAIN_DATA names them."""

import os
import warnings
from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest

from cxr_explain import adapters as a
from cxr_explain.findings import label_columns

pytestmark = pytest.mark.filterwarnings('ignore:.*no patient ids')
KINDS = [layout.kind for layout in a.LAYOUTS]
REAL = os.environ.get('CXR_EXPLAIN_DATA', '')


def made(kind, tmp_path, **options):
    root = tmp_path / kind
    fabricate.TREES[kind](root, **options)
    return root


def row(source, image_id):
    return source.rows.set_index('image_id').loc[image_id]


@pytest.mark.parametrize('kind', KINDS)
def test_every_layout_is_found_read_and_complete(kind, tmp_path):
    root = made(kind, tmp_path)
    assert a.survey(tmp_path).query('kind == kind').kind.tolist() == [kind]
    assert a.missing_files(kind, root) == []
    (source,) = a.find_sources(tmp_path)
    assert source.rows.columns.tolist() == list(a.ROW_COLUMNS) and len(source.rows) > 1
    assert source.rows.image_id.is_unique and source.rows.licence.notna().all() and source.rows.patient_id.notna().all()
    assert set(source.facts.image_id) <= set(source.rows.image_id)
    assert sorted(source.statement) == ['attribution', 'biases', 'licence', 'may_show']
    for path in source.rows.path.dropna():
        with a.image_file(source.root, path) as file:
            assert file.stat().st_size > 0


@pytest.mark.parametrize('kind', KINDS)
def test_rows_survive_parquet(kind, tmp_path):
    rows = a.get_layout(kind).read(made(kind, tmp_path)).rows
    rows.to_parquet(tmp_path / 'rows.parquet', index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / 'rows.parquet'), rows)


@pytest.mark.parametrize('kind', [k for k in KINDS if k not in ('openi_jsonl', 'parquet')])
def test_each_missing_image_is_named(kind, tmp_path):
    root = made(kind, tmp_path)
    paths = sorted(set(a.get_layout(kind).read(root).rows.path.dropna()))
    lost = paths[: len(paths) // 2]
    for path in lost:
        (root / path).unlink()
    gone = a.missing_files(kind, root)
    assert [a.openi_key(Path(p).name.split('.')[0]) for p in gone] == [
        a.openi_key(Path(p).name.split('.')[0]) for p in lost
    ]
    with pytest.warns(UserWarning, match=f'{len(lost)} listed files are not on disk'):
        (source,) = a.find_sources(tmp_path)
    assert len(source.rows) == len(paths) - len(lost) and source.notes['absent'] == len(lost)
    assert a.check_files(kind, root).startswith(f'{kind}: {len(lost)} files are missing: ')


@pytest.mark.parametrize('kind', KINDS)
def test_each_missing_table_is_named(kind, tmp_path):
    (tmp_path / kind).mkdir()
    assert len(a.missing_files(kind, tmp_path / kind)) == len(a.get_layout(kind).tables)


TABLES = dict(
    mimic_jpg='mimic-cxr-2.0.0-split.csv.gz',
    mimic_dicom='cxr-record-list.csv.gz',
    nih='Data_Entry_2017.csv',
    chexpert_plus='df_chexpert_plus_240401.csv',
    chexpert='valid.csv',
    covid='metadata.csv',
    folder='metadata.csv',
)


@pytest.mark.parametrize('kind', TABLES)
@pytest.mark.parametrize('content', [b'', b'\x1f\x8bbroken', b'some,other\n1,2\n', b'\xff\xfe\x00\x01'])
def test_a_broken_table_is_an_error_that_names_it(kind, content, tmp_path):
    root = made(kind, tmp_path)
    (root / TABLES[kind]).write_bytes(content)
    with pytest.raises(a.AdapterError, match=TABLES[kind]):
        a.get_layout(kind).read(root)


@pytest.mark.parametrize('kind', ['mimic_jpg', 'chexpert', 'nih', 'covid', 'folder'])
def test_a_doubled_image_is_an_error(kind, tmp_path):
    root = made(kind, tmp_path)
    name = 'train.csv' if kind == 'chexpert' else TABLES[kind].replace('split', 'metadata')
    lines = a.open_table(root / name)
    pd.concat([lines, lines]).to_csv(root / name, index=False)
    with pytest.raises(a.AdapterError, match='image_id occurs twice'):
        a.get_layout(kind).read(root)


def test_mimic_joins_five_tables_by_name(tmp_path):
    source = a.read_mimic_jpg(made('mimic_jpg', tmp_path))
    first, second, third, fourth, test, axial = [source.rows.iloc[k] for k in range(6)]
    assert first.path == 'files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg'
    assert (first.label_edema, first.label_pneumonia, first.label_pleural_effusion) == (1, -1, 0)
    assert np.isnan(first.label_fracture) and first.annotated_fracture
    assert not third.annotated_edema  # the labeler found nothing at all in that report
    assert [r.part for r in (first, fourth, test)] == ['train', 'select', 'test']
    assert (third['view'], second['view'], test['view'], axial['view']) == ('AP', 'LATERAL', 'LATERAL', 'AP')
    assert third.prior_study_id == first.study_id and third.order == 1 and pd.isna(first.prior_study_id)
    assert test.order == 1 and axial.order == 0  # dates decide, not study numbers
    assert (test.label_lung_opacity, test.label_atelectasis) == (1, 0)  # the radiologists, not the labeler
    assert (first.sex, first.age) == ('F', 52) and axial.age == 89 and pd.isna(fourth.sex)
    assert 'Mild' in first.findings and first.impression and first.indication and pd.isna(third.findings)
    assert source.notes == dict(
        studies_without_labels=2, studies_read_by_radiologists=1, no_official_part=0, unknown_view=0
    )
    assert np.isnan(a.read_mimic_jpg(tmp_path / 'mimic_jpg', labeler='negbio').rows.label_no_finding[3])


def test_mimic_reports_are_found_beside_the_set_and_a_broken_zip_is_named(tmp_path):
    root = made('mimic_jpg', tmp_path / 'mimic-cxr-jpg', reports=False)
    assert a.read_mimic_jpg(root).rows.findings.isna().all()
    fabricate.mimic_reports(tmp_path / 'mimic-cxr-jpg' / 'mimic-cxr' / 'mimic-cxr-reports.zip')
    assert a.read_mimic_jpg(root).rows.findings.notna().sum() == 2
    broken = fabricate.put(tmp_path / 'mimic-cxr-reports.zip', b'PK\x03\x04 cut')
    with pytest.raises(a.AdapterError, match='mimic-cxr-reports.zip cannot be read'):
        a.read_mimic_jpg(root, reports=broken)


def test_mimic_dicom_with_and_without_the_jpg_tables(tmp_path):
    bare = a.read_mimic_dicom(made('mimic_dicom', tmp_path / 'bare')).rows
    assert bare.path[0].endswith('4e384014.dcm') and bare.part.isna().all() and bare.label_edema[0] == 1
    assert not bare.annotated_edema[2]  # no report, no label
    full = a.read_mimic_dicom(made('mimic_dicom', tmp_path / 'full', tables=True)).rows
    assert full.part[3] == 'select' and full['view'][2] == 'AP' and full.label_pneumonia[0] == -1


def test_the_same_image_in_two_sets_is_kept_once(tmp_path):
    made('mimic_jpg', tmp_path)
    made('mimic_dicom', tmp_path)
    (source,) = a.find_sources(tmp_path)
    assert source.rows.path.str.endswith('.jpg').all() and len(source.rows) == 6


def test_chexpert_valid_is_the_test_part_and_numbers_are_no_time_line(tmp_path):
    source = a.read_chexpert(made('chexpert', tmp_path))
    r = row(source, 'chexpert_patient00002_study2_view1_frontal')
    assert (r.label_cardiomegaly, r.label_lung_opacity, r.part, r['view'], r.age) == (-1, 1, 'train', 'LATERAL', 87)
    assert np.isnan(r.label_pneumonia) and r.annotated_pneumonia and source.rows.order.isna().all()
    assert row(source, 'chexpert_patient64541_study1_view1_frontal').part == 'test'
    assert row(source, 'chexpert_patient00002_study1_view2_lateral')[['sex', 'view']].isna().tolist() == [True, False]


def test_chexpert_plus_chooses_the_section_of_its_labels(tmp_path):
    root = made('chexpert_plus', tmp_path)
    rows = a.read_chexpert_plus(root).rows
    assert rows.label_edema[0] == 1 and a.read_chexpert_plus(root, 'report').rows.label_edema[0] == -1
    assert rows.path[0] == 'PNG/train/patient42142/study5/view1_frontal.png' and rows.part.tolist() == [
        'train',
        'train',
        'test',
    ]
    assert rows.prior_study_id[0] == 'chexpert_patient42142_study2' and not rows.annotated_edema[1]
    bare = a.read_chexpert_plus(made('chexpert_plus', tmp_path / 'bare', labels=False))
    assert bare.notes == dict(labels='label_report') and bare.rows.label_edema[0] == 1
    fabricate.put(root / 'chexbert_labels' / 'impression_fixed.json', '{"path_to_image": ')
    with pytest.raises(a.AdapterError, match='impression_fixed.json is not JSON lines'):
        a.read_chexpert_plus(root)


@pytest.mark.parametrize('release', ['2017', '2020'])
@pytest.mark.parametrize('folders', [True, False])
def test_nih_in_both_releases_and_both_layouts(release, folders, tmp_path):
    source = a.read_nih(made('nih', tmp_path, release=release, folders=folders))
    r = row(source, 'nih_00000001_001')
    assert (r.patient_id, r['view'], r.sex, r.order, r.prior_study_id) == (
        'nih_00000001',
        'AP',
        'M',
        1,
        'nih_00000001_000',
    )
    assert np.isnan(r.age) and row(source, 'nih_00000001_000').age == 58 and source.notes['ages_dropped'] == 1
    assert source.rows.part.tolist() == ['train', 'train', 'test', 'train']
    assert (
        r.label_cardiomegaly == 1 and r.label_pneumonia == 0 and np.isnan(r.label_fracture) and not r.annotated_fracture
    )
    boxes = source.facts.set_index('image_id')
    assert boxes.label.to_dict() == {'nih_00000001_000': 'Cardiomegaly', 'nih_00000003_000': 'Lung Opacity'}
    assert boxes.box['nih_00000003_000'] == [10, 20, 40, 60] and boxes.name['nih_00000003_000'] == 'Infiltration'


def test_parents_of_positive_children_are_never_zero(tmp_path):
    made('nih', tmp_path)
    (source,) = a.find_sources(tmp_path)
    assert row(source, 'nih_00000003_000').label_lung_opacity == 1 and source.notes['reconciled'] == {'Lung Opacity': 1}
    assert source.rows.label_enlarged_cardiomediastinum.isna().all()  # never read: stays masked beside Cardiomegaly


def test_covid_takes_films_only_and_no_label_that_the_diagnosis_does_not_give(tmp_path):
    source = a.read_covid(made('covid', tmp_path))
    assert source.rows.part.eq('external').all() and source.notes == dict(not_a_film=1, licence_unstated=2)
    one, two, normal, tb = [source.rows.iloc[k] for k in range(4)]
    assert (one.label_pneumonia, one.label_no_finding, one.licence) == (1, 0, 'CC BY-NC-SA')
    assert two['view'] == 'AP' and two.prior_study_id == one.study_id and two.licence == a.UNSTATED
    assert (normal.label_no_finding, normal.label_pneumonia, normal['view']) == (1, 0, 'LATERAL')
    assert np.isnan(tb.label_pneumonia) and not tb.annotated_pneumonia and tb.label_no_finding == 0
    assert source.rows[label_columns('annotated')].to_numpy().sum() == 7
    made('covid', tmp_path)
    (closed,) = a.find_sources(tmp_path)
    assert closed.rows.label_consolidation.isna().all()


@pytest.mark.parametrize('packed', [True, False])
def test_openi_images_views_and_reports(packed, tmp_path):
    source = a.read_openi(made('openi', tmp_path, packed=packed))
    assert source.rows['view'].tolist() == ['LATERAL', 'FRONTAL', 'FRONTAL']
    assert source.rows.path[2] == 'NLMCXR_png/2_IM-0652-1001.dcm.png' and source.rows.patient_id.nunique() == 2
    assert source.rows.label_cardiomegaly[0] == 1 and source.rows.label_pleural_effusion[0] == 0
    texts = a.read_openi(made('openi', tmp_path / 'texts', images=False, packed=packed))
    assert len(texts.rows) == 3 and texts.rows.path.isna().all() and not texts.rows.annotated_edema[2]


@pytest.mark.parametrize(
    'text, message',
    [
        ('<eCitation>', '2.xml is not XML'),
        ('<eCitation/>', '2.xml has no uId'),
        (fabricate.openi_xml(2, '', '', [], licence='none'), "licenseURL is 'none'"),
    ],
)
def test_broken_openi_xml_is_named(text, message, tmp_path):
    root = made('openi', tmp_path, packed=False)
    fabricate.put(root / 'ecgen-radiology' / '2.xml', text)
    with pytest.raises(a.AdapterError, match=message):
        a.read_openi(root)


def test_a_cut_openi_archive_is_named(tmp_path):
    root = made('openi', tmp_path)
    whole = (root / 'NLMCXR_reports.tgz').read_bytes()
    (root / 'NLMCXR_reports.tgz').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(a.AdapterError, match='NLMCXR_reports.tgz cannot be read'):
        a.read_openi(root)


def test_parquet_groups_equal_images_and_texts_and_warns(tmp_path):
    root = made('parquet', tmp_path)
    with pytest.warns(UserWarning, match='no patient ids; 3 groups'):
        source = a.read_parquet(root)
    assert source.rows.patient_id[0] == source.rows.patient_id[2] == source.rows.patient_id[3]
    assert source.rows.patient_id[1] != source.rows.patient_id[4] and source.notes['largest_group'] == 3
    assert source.rows.path[4] == 'data/train-00001-of-00002.parquet#1' and not source.rows.annotated_edema[4]
    with a.image_file(root, source.rows.path[2]) as file:
        assert file.read_bytes() == fabricate.picture(0)
    nine = a.image_file(root, 'data/train-00001-of-00002.parquet#9')
    with pytest.raises(a.AdapterError, match='has 2 rows and none of number 9'):
        nine.__enter__()
    (root / 'data' / 'train-00001-of-00002.parquet').write_bytes(b'PAR1 cut')
    with pytest.raises(a.AdapterError, match='00001-of-00002.parquet cannot be read'):
        a.read_parquet(root)


def test_folder_keeps_ids_licences_boxes_and_masks(tmp_path):
    source = a.read_folder(made('folder', tmp_path))
    one, two = source.rows.iloc[0], source.rows.iloc[1]
    assert (one.image_id, one.source, one['view'], one.patient_id) == ('nih_00000061_012', 'nih', 'AP', 'nih_00000061')
    assert (two.source, two.part, two.split_group, two.findings) == ('covid', 'external', 'cohen_group_1', 'made up')
    assert one.annotated_edema and not two.annotated_edema and not source.rows.annotated_fracture.any()
    assert source.facts.name.tolist() == ['Effusion', 'Left Lung', 'lungs'] and source.facts.side[1] == 'left'
    assert source.facts.label.tolist()[0] == 'Pleural Effusion' and source.facts.label.isna().sum() == 2
    assert source.facts.mask_path[2] == 'masks/b.png'


def test_blank_means_silence_only_where_a_source_writes_no_zero(tmp_path):
    root = made('folder', tmp_path)
    pd.DataFrame(
        dict(
            path=[f'images/{k}.png' for k in range(6)],
            licence='CC0',
            source_dataset=['NIH ChestX-ray14'] * 3 + ['COVID-19 image data collection'] * 3,
            patient_id=list('abcdef'),
            study_id=list('abcdef'),
            Edema=[1, 0, None, 1, None, None],  # the first source writes its negatives, the second does not
            Pneumonia=[None, None, None, 1, -1, 0],
            Fracture=[None] * 6,
        )
    ).to_csv(root / 'metadata.csv', index=False)
    rows = a.read_folder(root).rows
    assert rows.annotated_edema.tolist() == [True, True, False, True, True, True]
    assert rows.annotated_pneumonia.tolist() == [False] * 3 + [True] * 3
    assert not rows.annotated_fracture.any() and not rows.annotated_atelectasis.any()
    assert rows.label_edema.isna().tolist() == [False, False, True, False, True, True], 'no label is made up'


OPTIONAL = dict(
    nih=['BBox_List_2017.csv'],
    openi=['indiana_projections.csv'],
    mimic_jpg=['mimic-cxr-reports.zip', 'patients.csv.gz', 'mimic-cxr-2.1.0-test-set-labeled.csv'],
    mimic_dicom=['mimic-cxr-reports.zip'],
    chexpert_plus=['chexbert_labels/impression_fixed.json'],
)


@pytest.mark.parametrize('kind', KINDS)
def test_each_missing_optional_file_is_named(kind, tmp_path):
    root, names = made(kind, tmp_path / 'whole'), OPTIONAL.get(kind, [])
    before = a.optional_files(kind, root)
    for name in names:
        (root / name).unlink()
    new = [n for n in a.optional_files(kind, root) if n not in before]
    assert len(new) == len(names) and all(any(Path(m).stem.split('.')[0] in n for n in new) for m in names)
    line = a.check_files(kind, root)
    assert line.startswith(f'{kind}: no file is missing') and all(n in line for n in new)
    assert a.missing_files(kind, root) == [] and '../' not in line and '*.csv' not in line


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(boxes='[{"label": "Efusion", "x": 1, "y": 1, "w": 1, "h": 1}]'), 'unknown label'),
        (dict(boxes='[{"label": "Effusion", "x": 1}]'), 'lacks label, x, y, w or h'),
        (dict(boxes='[{'), 'boxes of'),
        (dict(boxes='[{"label": "Effusion", "x": 1, "y": 1, "w": 0, "h": 1}]'), 'no area'),
        (dict(Edema='maybe'), "Edema is 'maybe'"),
        (dict(licence=None), 'no licence'),
        (dict(part='dev'), 'part is dev'),
    ],
)
def test_bad_cells_of_a_folder_are_named(change, message, tmp_path):
    root = made('folder', tmp_path)
    pd.read_csv(root / 'metadata.csv').assign(**change).to_csv(root / 'metadata.csv', index=False)
    with pytest.raises(a.AdapterError, match=message):
        a.read_folder(root)


def test_nothing_found_says_what_was_looked_for(tmp_path):
    fabricate.put(tmp_path / 'notes' / 'todo.txt', 'nothing')
    with pytest.raises(a.AdapterError, match='Looked for mimic_jpg.*parquet'):
        a.find_sources(tmp_path)
    with pytest.raises(a.AdapterError, match='unknown kind'):
        a.missing_files('padchest', tmp_path)


def test_all_sets_together_have_unique_images(tmp_path):
    for kind in KINDS:
        made(kind, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sources = a.find_sources(tmp_path)
    rows = pd.concat([s.rows for s in sources])
    assert rows.image_id.is_unique and len({s.name for s in sources}) == len(sources) == len(KINDS) - 1


def test_every_set_has_its_statement_on_the_page():
    page = (Path(__file__).parents[1] / 'nbs' / 'getting_data.qmd').read_text()
    assert not [kind for kind in a.STATEMENTS if f'`{kind}`' not in page]


@pytest.mark.skipif(not REAL, reason='CXR_EXPLAIN_DATA does not name a folder with real data sets')
def test_real_sets():
    sources = {s.name: s for s in a.find_sources(REAL)}
    real, openi = sources['cxr_real'], sources['openi']
    assert len(real.rows) == 1240 and real.rows.patient_id.nunique() == 946 and real.rows.split_group.nunique() == 938
    assert real.notes['reconciled']['Lung Opacity'] == 375 and real.rows.source.value_counts().to_dict() == dict(
        nih=1119, covid=121
    )
    assert real.facts.label.notna().sum() == 40 and real.facts.mask_path.notna().sum() == 72
    assert (
        len(openi.rows) == 3955
        and openi.rows.findings.notna().sum() == 3425
        and openi.rows.impression.notna().sum() == 3921
    )
    assert a.missing_files('folder', real.root) == []
