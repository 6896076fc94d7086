"""Fabricated trees with the layouts, headers and quirks of the public sets; all that they say is made up."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

LABELS = (
    'Atelectasis',
    'Cardiomegaly',
    'Consolidation',
    'Edema',
    'Enlarged Cardiomediastinum',
    'Fracture',
    'Lung Lesion',
    'Lung Opacity',
    'No Finding',
    'Pleural Effusion',
    'Pleural Other',
    'Pneumonia',
    'Pneumothorax',
    'Support Devices',
)  # MIMIC's own order, not the project's


def picture(k: int, kind: str = 'PNG') -> bytes:
    "A small picture that differs with k."
    rng = np.random.default_rng(k)
    img = Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8))
    out = io.BytesIO()
    img.save(out, kind)
    return out.getvalue()


def put(path: Path, content) -> Path:
    "Write text or bytes; text is gzipped where the name ends in .gz."
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' and isinstance(content, str) else data)
    return path


MIMIC = [  # dicom_id, subject, study, view, code, date, time, split
    (
        '02aa804e-bde0afdd-112c0b34-7bc16630-4e384014',
        '10000032',
        '50414267',
        'PA',
        'postero-anterior',
        '21800506',
        '213014.531',
        'train',
    ),
    (
        '174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962',
        '10000032',
        '50414267',
        'LATERAL',
        'lateral',
        '21800506',
        '213014.531',
        'train',
    ),
    (
        '2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab',
        '10000032',
        '53189527',
        '',
        'antero-posterior',
        '21800626',
        '90500.312',
        'train',
    ),
    (
        '68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714',
        '11000033',
        '53911762',
        'AP',
        'antero-posterior',
        '21800723',
        '80556.875',
        'validate',
    ),
    (
        'd0b71acc-b5a62046-bbb5f6b8-7b173b85-65cdf738',
        '12000034',
        '56699142',
        'LL',
        'lateral',
        '21500101',
        '80556.875',
        'test',
    ),
    (
        'fffabebf-74fd3a1f-673b6b41-96ec0ac9-2ab69818',
        '12000034',
        '57375967',
        'AP AXIAL',
        '',
        '21490101',
        '235959.5',
        'test',
    ),
]
MIMIC_TEXT = {
    '50414267': '                                 FINAL REPORT\n INDICATION:  Made-up cough of ___.\n\n FINDINGS: \n \n'
    ' There is no pleural effusion.  Mild pulmonary edema.\n\n IMPRESSION: \n \n Mild edema.\n',
    '53911762': ' FINAL REPORT\n IMPRESSION:  No acute process.\n',
}


def mimic_folder(row) -> str:
    return f'files/p{row[1][:2]}/p{row[1]}/s{row[2]}'


def mimic_tables(root: Path):
    lines = [
        f'{d},{s},"CHEST (PA AND LAT)",{t},{v},3056,2544,{date},{time},CHEST (PA AND LAT),{code},Erect'
        for d, s, t, v, code, date, time, _ in MIMIC
    ]
    put(
        root / 'mimic-cxr-2.0.0-metadata.csv.gz',
        'dicom_id,subject_id,PerformedProcedureStepDescription,study_id,ViewPosition,'
        'Rows,Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,'
        'PatientOrientationCodeSequence_CodeMeaning\n' + '\n'.join(lines) + '\n',
    )
    put(
        root / 'mimic-cxr-2.0.0-split.csv.gz',
        'dicom_id,study_id,subject_id,split\n' + ''.join(f'{r[0]},{r[2]},{r[1]},{r[7]}\n' for r in MIMIC),
    )
    head = 'subject_id,study_id,' + ','.join(LABELS) + '\n'
    blank = ',' * (len(LABELS) - 1)
    put(
        root / 'mimic-cxr-2.0.0-chexpert.csv.gz',
        head + '10000032,50414267,,,,1.0,,,,,,0.0,,-1.0,,\n'
        f'10000032,53189527,{blank}\n'
        + '11000033,53911762,,,,,,,,,1.0,,,,,\n'
        + '12000034,56699142,1.0,,,,,,,,,,,,,\n',
    )
    put(root / 'mimic-cxr-2.0.0-negbio.csv.gz', head + '10000032,50414267,,,,-1.0,,,,,,0.0,,,,\n')
    names = [label.replace('Lung Opacity', 'Airspace Opacity') for label in reversed(LABELS)]
    put(
        root / 'mimic-cxr-2.1.0-test-set-labeled.csv',
        'study_id,' + ','.join(names) + '\n'
        '56699142,' + ','.join('1.0' if n == 'Airspace Opacity' else '0.0' for n in names) + '\n',
    )


def mimic_reports(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as z:
        for name, study in sorted({(mimic_folder(row), row[2]) for row in MIMIC}):
            if study in MIMIC_TEXT:
                z.writestr(f'{name}.txt', MIMIC_TEXT[study])


def mimic_jpg(root: Path, reports: bool = True):
    mimic_tables(root)
    for k, row in enumerate(MIMIC):
        put(root / mimic_folder(row) / f'{row[0]}.jpg', picture(k, 'JPEG'))
    put(
        root / 'patients.csv.gz',
        'subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n'
        '10000032,F,52,2180,2014 - 2016,\n12000034,M,90,2150,2014 - 2016,\n',
    )
    if reports:
        mimic_reports(root / 'mimic-cxr-reports.zip')


def mimic_dicom(root: Path, tables: bool = False):
    put(
        root / 'cxr-record-list.csv.gz',
        'subject_id,study_id,dicom_id,path\n'
        + ''.join(f'{r[1]},{r[2]},{r[0]},{mimic_folder(r)}/{r[0]}.dcm\n' for r in MIMIC),
    )
    for row in MIMIC:
        put(root / mimic_folder(row) / f'{row[0]}.dcm', b'not read here')
    mimic_reports(root / 'mimic-cxr-reports.zip')
    if tables:
        mimic_tables(root)


CHEXPERT = (
    'No Finding',
    'Enlarged Cardiomediastinum',
    'Cardiomegaly',
    'Lung Opacity',
    'Lung Lesion',
    'Edema',
    'Consolidation',
    'Pneumonia',
    'Atelectasis',
    'Pneumothorax',
    'Pleural Effusion',
    'Pleural Other',
    'Fracture',
    'Support Devices',
)


def chexpert(root: Path):
    head = 'Path,Sex,Age,Frontal/Lateral,AP/PA,' + ','.join(CHEXPERT) + '\n'
    name = root.name
    put(
        root / 'train.csv',
        head
        + f'{name}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0\n'
        + f'{name}/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,LL'
        + ',,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,\n'
        + f'{name}/train/patient00002/study1/view2_lateral.jpg,Unknown,0,Lateral,,,,,1.0,,,1.0,,,,,,,\n',
    )
    put(
        root / 'valid.csv',
        head
        + f'{name}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,PA,0.0,1.0,1.0,1.0'
        + ',0.0' * 10
        + '\n',
    )
    for k, p in enumerate(
        (
            'train/patient00001/study1/view1_frontal',
            'train/patient00002/study2/view1_frontal',
            'train/patient00002/study1/view2_lateral',
            'valid/patient64541/study1/view1_frontal',
        )
    ):
        put(root / f'{p}.jpg', picture(k, 'JPEG'))


def chexpert_plus(root: Path, labels: bool = True):
    columns = (
        'path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,'
        'section_narrative,section_clinical_history,section_history,section_comparison,section_technique,'
        'section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,'
        'section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split'
    )
    rows = [
        (
            'train/patient42142/study5/view1_frontal.jpg',
            'Frontal',
            'AP',
            'patient42142',
            2,
            '',
            'Mild pulmonary edema.',
            'train',
        ),
        (
            'train/patient42142/study2/view1_frontal.jpg',
            'Frontal',
            'PA',
            'patient42142',
            1,
            'The lungs\nare clear.',
            '',
            'train',
        ),
        (
            'valid/patient64541/study1/view1_frontal.jpg',
            'Frontal',
            'PA',
            'patient64541',
            1,
            '',
            'No acute disease.',
            'valid',
        ),
    ]
    names = columns.split(',')
    table = pd.DataFrame(
        [
            dict(
                path_to_image=p,
                frontal_lateral=f,
                ap_pa=a,
                deid_patient_id=i,
                patient_report_date_order=o,
                section_findings=t,
                section_impression=m,
                split=s,
                age=41,
                sex='Male',
                section_clinical_history='made up',
            )
            for p, f, a, i, o, t, m, s in rows
        ],
        columns=names,
    )
    root.mkdir(parents=True, exist_ok=True)
    table.to_csv(root / 'df_chexpert_plus_240401.csv', index=False)
    for k, r in enumerate(rows):
        put(root / 'PNG' / r[0].replace('.jpg', '.png'), picture(k))
    if not labels:
        return
    for section in ('findings', 'impression', 'report'):
        lines = [dict(path_to_image=r[0], **dict.fromkeys(CHEXPERT)) for r in rows]
        lines[0]['Edema'] = 1.0 if section == 'impression' else -1.0
        lines[2]['No Finding'] = 1.0
        put(root / 'chexbert_labels' / f'{section}_fixed.json', '\n'.join(json.dumps(x) for x in lines) + '\n')


NIH_HEAD = {
    '2017': 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
    'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n',
    '2020': 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,'
    'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n',
}


def nih(root: Path, release: str = '2017', folders: bool = True):
    end = ',\n' if release == '2017' else '\n'
    rows = [
        '00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143',
        '00000001_001.png,Cardiomegaly|Emphysema,1,1,412,M,AP,2894,2729,0.143,0.143',
        '00000002_000.png,No Finding,0,2,81,F,PA,2500,2048,0.171,0.171',
        '00000003_000.png,Consolidation|Effusion,0,3,7,F,PA,2500,2048,0.171,0.171',
    ]
    name = 'Data_Entry_2017.csv' if release == '2017' else 'Data_Entry_2017_v2020.csv'
    put(root / name, NIH_HEAD[release] + ''.join(r + end for r in rows))
    put(root / 'train_val_list.txt', '00000001_000.png\n00000001_001.png\n00000003_000.png\n')
    put(root / 'test_list.txt', '00000002_000.png')
    put(
        root / 'BBox_List_2017.csv',
        'Image Index,Finding Label,Bbox [x,y,w,h],,,\n'
        '00000001_000.png,Cardiomegaly,225.08,547.01,86.77,79.18,,,\n00000003_000.png,Infiltrate,10,20,30,40,,,\n',
    )
    for k, r in enumerate(rows):
        image = r.split(',')[0]
        put(root / (f'images_00{k % 2 + 1}/images/{image}' if folders else f'images/{image}'), picture(k))


def covid(root: Path):
    head = (
        'patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,'
        'needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,'
        'view,modality,date,location,folder,filename,doi,url,license,clinical_notes,other_notes,\n'
    )

    def row(pid, offset, finding, view, modality, name, licence='', sex='M', age='65', folder='images'):
        return (
            f'{pid},{offset},{sex},{age},{finding},Y,Y,N,N,N,N,Y,,,,,,,{view},{modality},"January 22, 2020",'
            '"Nowhere, Noland",'
            f'{folder},{name},10.0/x,https://example.org,{licence},"made up, entirely",,\n'
        )

    put(
        root / 'metadata.csv',
        head
        + row(2, 0, 'Pneumonia/Viral/COVID-19', 'PA', 'X-ray', 'a-one.jpeg', 'CC BY-NC-SA')
        + row(2, 3, 'Pneumonia/Viral/COVID-19', 'AP Supine', 'X-ray', 'a-two.jpeg')
        + row(2, 3, 'Pneumonia/Viral/COVID-19', 'Axial', 'CT', 'a-ct.jpeg', folder='volumes')
        + row('324a', '', 'No Finding', 'L', 'X-ray', 'b.png', 'CC BY', '', '')
        + row(5, '', 'Tuberculosis', 'PA', 'X-ray', 'c.png'),
    )
    for k, n in enumerate(('a-one.jpeg', 'a-two.jpeg', 'b.png', 'c.png')):
        put(root / 'images' / n, picture(k, 'JPEG' if n.endswith('jpeg') else 'PNG'))


def openi_xml(
    n: int,
    findings: str,
    impression: str,
    images: list[str],
    licence='http://creativecommons.org/licenses/by-nc-nd/4.0/',
):
    parents = ''.join(
        f'<parentImage id="{i}"><caption>Made up</caption><panel type="single"><url>/x/{i}.jpg</url></panel>'
        '</parentImage>'
        for i in images
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><meta type="rr"/><uId id="CXR{n}"/>'
        '<licenseType>open-access</licenseType>'
        f'<licenseURL>{licence}</licenseURL><MedlineCitation><Article><Abstract>'
        '<AbstractText Label="COMPARISON">None.</AbstractText>'
        '<AbstractText Label="INDICATION">Made up XXXX.</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>'
        f'</Abstract></Article></MedlineCitation><MeSH><major>normal</major></MeSH>{parents}</eCitation>'
    )


def openi(root: Path, images: bool = True, packed: bool = True):
    reports = {
        1: openi_xml(
            1, 'Mild cardiomegaly. No effusion.', 'Cardiomegaly.', ['CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001']
        ),
        2: openi_xml(2, '', 'No acute disease.', ['CXR2_IM-0652-1001']),
        3: openi_xml(3, '', '', []),
    }
    if packed:
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / 'NLMCXR_reports.tgz', 'w:gz') as tar:
            for n, text in reports.items():
                info = tarfile.TarInfo(f'ecgen-radiology/{n}.xml')
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    else:
        for n, text in reports.items():
            put(root / 'ecgen-radiology' / f'{n}.xml', text)
    if not images:
        return
    for k, i in enumerate(('CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001')):
        put(root / 'NLMCXR_png' / f'{i}.png', picture(k))
    put(root / 'NLMCXR_png' / '2_IM-0652-1001.dcm.png', picture(2))  # as a later repackaging names it
    put(
        root / 'indiana_projections.csv',
        'uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n'
        '1,1_IM-0001-3001.dcm.png,Lateral\n2,2_IM-0652-1001.dcm.png,Frontal\n',
    )


def openi_jsonl(root: Path):
    rows = [
        dict(id='CXR1', indication='Made up.', findings='No effusion.', impression='Normal.', image_ids=['x']),
        dict(id='CXR2', indication='', findings='', impression='', image_ids=[]),
    ]
    put(root / 'openi_reports.jsonl', '\n'.join(json.dumps(r) for r in rows) + '\n')


def parquet(root: Path):
    def cell(k):
        return dict(bytes=picture(k), path=f'{k}.png')

    first = pd.DataFrame(
        dict(
            image=[cell(0), cell(1), cell(0)],
            findings=['Clear lungs.', 'Small effusion.', 'Other words.'],
            impression=['Normal.', 'Effusion.', 'Same picture.'],
        )
    )
    second = pd.DataFrame(
        dict(image=[cell(3), cell(4)], findings=['clear  lungs.', None], impression=['Normal.', None])
    )
    (root / 'data').mkdir(parents=True, exist_ok=True)
    for k, df in enumerate((first, second)):
        df.to_parquet(root / 'data' / f'train-0000{k}-of-00002.parquet', row_group_size=2)


def folder(root: Path):
    box = json.dumps([dict(label='Effusion', x=1, y=2, w=10, h=20), dict(label='Left Lung', x=5, y=5, w=9, h=9)])
    pd.DataFrame(
        dict(
            study_id=['nih_00000061_012', 'cohen_0006_x'],
            patient_id=['nih_00000061', 'cohen_5'],
            split_group=['nih_00000061', 'cohen_group_1'],
            path=['images/a.png', 'images/b.png'],
            view=['AP Supine', 'PA'],
            sex=['M', None],
            age=[77, None],
            report_or_note=[None, 'made up'],
            source_labels=['x', 'y'],
            boxes=[box, None],
            lung_mask_path=[None, 'masks/b.png'],
            licence=['free', 'CC BY'],
            source_dataset=['NIH ChestX-ray14', 'COVID-19 image data collection (fork)'],
            **{
                'No Finding': [0, 0],
                'Edema': [1, None],
                'Lung Opacity': [0, None],
                'Fracture': [None, None],
                'Pneumonia': [None, 1],
            },
        )
    ).pipe(lambda df: (root.mkdir(parents=True, exist_ok=True), df.to_csv(root / 'metadata.csv', index=False)))
    for k, p in enumerate(('images/a.png', 'images/b.png', 'masks/b.png')):
        put(root / p, picture(k))


TREES = dict(
    mimic_jpg=mimic_jpg,
    mimic_dicom=mimic_dicom,
    chexpert_plus=chexpert_plus,
    chexpert=chexpert,
    nih=nih,
    covid=covid,
    openi=openi,
    openi_jsonl=openi_jsonl,
    folder=folder,
    parquet=parquet,
)
