"""Reports: golden section cuts, cleaning, the table of sentences, and the CheXpert labeler's own samples.

Every text here is invented.
"""
# ruff: noqa: E501  (a golden report reads better on one line)
import csv
import os
from pathlib import Path

import pytest

from cxr_explain.findings import LABELS, Finding
from cxr_explain.reports import (
    clean_report,
    label_mentions,
    label_report,
    parse_sections,
    report_findings,
    split_sentences,
    strip_phi,
)

HERE = Path(__file__).parent
with open(HERE/'labeler_sentences.csv', encoding='utf-8', newline='') as file: SENTENCES = list(csv.DictReader(file))

GOLDEN = {  # name: (report, {section: its text}); sections that are not named must be empty
    'no headers': ('Heart size is normal. Lungs are clear.', dict(findings='Heart size is normal. Lungs are clear.')),
    'empty': ('', {}),
    'only spaces': (' \n\t \n', {}),
    'only a rule': ('______\n', {}),
    'two sections': ('FINDINGS: Small effusion.\nIMPRESSION: Effusion.',
                     dict(findings='Small effusion.', impression='Effusion.')),
    'all five': ('INDICATION: Cough.\nCOMPARISON: None.\nTECHNIQUE: PA.\nFINDINGS: Clear.\nIMPRESSION: Normal.',
                 dict(indication='Cough.', comparison='None.', technique='PA.', findings='Clear.', impression='Normal.')),
    'one line': ('INDICATION: Cough. FINDINGS: Clear lungs. IMPRESSION: Normal.',
                 dict(indication='Cough.', findings='Clear lungs.', impression='Normal.')),
    'one line without stops': ('INDICATION: cough COMPARISON: none FINDINGS: clear IMPRESSION: normal',
                               dict(indication='cough', comparison='none', findings='clear', impression='normal')),
    'lower case': ('findings: clear lungs.\nimpression: normal chest.',
                   dict(findings='clear lungs.', impression='normal chest.')),
    'title case': ('Findings: Clear lungs.\n\nConclusion: Normal chest.',
                   dict(findings='Clear lungs.', impression='Normal chest.')),
    'all capitals': ('HISTORY: FALL.\nFINDINGS: RIB FRACTURE ON THE LEFT.\nIMPRESSION: RIB FRACTURE.',
                     dict(indication='FALL.', findings='RIB FRACTURE ON THE LEFT.', impression='RIB FRACTURE.')),
    'headers on their own line': ('FINDINGS\nThe heart is large.\nIMPRESSION\nCardiomegaly.',
                                  dict(findings='The heart is large.', impression='Cardiomegaly.')),
    'header with a dash': ('Impression -\nNormal.', dict(impression='Normal.')),
    'header without colon, same line': ('FINDINGS The heart is large. IMPRESSION Cardiomegaly.',
                                        dict(findings='The heart is large.', impression='Cardiomegaly.')),
    'capitals that are no header': ('FINDINGS ARE CONSISTENT WITH EDEMA.', dict(findings='FINDINGS ARE CONSISTENT WITH EDEMA.')),
    'impression only': ('IMPRESSION: No acute disease.', dict(impression='No acute disease.')),
    'findings only': ('FINDINGS: No acute disease.', dict(findings='No acute disease.')),
    'two impressions': ('IMPRESSION: First read normal.\nFINDINGS: Clear.\nIMPRESSION: Nodule at the apex.',
                        dict(findings='Clear.', impression='First read normal.\nNodule at the apex.')),
    'addendum': ('FINDINGS: Clear.\nIMPRESSION: Normal.\nADDENDUM: A nodule was found later.',
                 dict(findings='Clear.', impression='Normal.', addendum='A nodule was found later.')),
    'addendum first': ('ADDENDUM:\nThe tube was moved.\n\nFINDINGS: Tube in place.',
                       dict(addendum='The tube was moved.', findings='Tube in place.')),
    'numbered list': ('IMPRESSION:\n1. Small effusion.\n2. Cardiomegaly.', dict(impression='1. Small effusion.\n2. Cardiomegaly.')),
    'bullets': ('FINDINGS:\n- Clear lungs\n- Large heart', dict(findings='- Clear lungs\n- Large heart')),
    'final report': ('FINAL REPORT\nFINDINGS: Clear.', dict(findings='Clear.')),
    'final report, spaced': ('                          FINAL REPORT\n CHEST, TWO VIEWS\n\n HISTORY:  Fever.\n\n FINDINGS:  Clear.',
                             dict(indication='Fever.', findings='Clear.', other='CHEST, TWO VIEWS')),
    'wet read': ('WET READ: Possible effusion.\n______\nFINAL REPORT\nIMPRESSION: No effusion.',
                 dict(wet_read='Possible effusion.', impression='No effusion.')),
    'wet read only': ('WET READ: Possible effusion.', dict(wet_read='Possible effusion.')),
    'unheaded findings after comparison': ('COMPARISON: ___.\n\nThe heart is large. Clear lungs.\n\nIMPRESSION: Cardiomegaly.',
                                           dict(findings='The heart is large. Clear lungs.', impression='Cardiomegaly.')),
    'unheaded findings after history': ('HISTORY: Cough.\n\nLungs are clear.', dict(indication='Cough.', findings='Lungs are clear.')),
    'indication on the next line': ('REASON FOR EXAM:\nrule out pneumonia\nFINDINGS:\nClear.',
                                    dict(indication='rule out pneumonia', findings='Clear.')),
    'wrapped lines': ('FINDINGS: There is a small\n left effusion with\n atelectasis.\nIMPRESSION: Effusion.',
                      dict(findings='There is a small\n left effusion with\n atelectasis.', impression='Effusion.')),
    'Windows line ends': ('FINDINGS: Clear.\r\nIMPRESSION: Normal.\r\n', dict(findings='Clear.', impression='Normal.')),
    'Windows, own lines': ('FINDINGS\r\nClear.\r\nIMPRESSION\r\nNormal.\r\n', dict(findings='Clear.', impression='Normal.')),
    'organ headers': ('LUNGS: Clear.\nHEART: Enlarged.\nBONES: No fracture.',
                      dict(findings='LUNGS: Clear.\nHEART: Enlarged.\nBONES: No fracture.')),
    'organs below findings': ('FINDINGS:\nLungs: Clear.\nPleura: No effusion.\nIMPRESSION: Normal.',
                              dict(findings='Lungs: Clear.\nPleura: No effusion.', impression='Normal.')),
    'unknown header': ('FINDINGS: Clear.\nNURSE CALLED: at noon.', dict(findings='Clear.', other='NURSE CALLED: at noon.')),
    'recommendation is kept': ('IMPRESSION: Nodule.\nRECOMMENDATION: CT of the chest.',
                               dict(impression='Nodule.', other='RECOMMENDATION: CT of the chest.')),
    'examination': ('EXAMINATION: Chest, portable.\nFINDINGS: Clear.', dict(technique='Chest, portable.', findings='Clear.')),
    'opinion': ('Report: Clear lungs.\nOpinion: Normal.', dict(findings='Clear lungs.', impression='Normal.')),
    'XXXX of Open-I': ('The XXXX are normal. No effusion. XXXX opacity.', dict(findings='The XXXX are normal. No effusion. XXXX opacity.')),
    'a colon that is no header': ('The nodule is small: 5 mm.', dict(findings='The nodule is small: 5 mm.')),
}

@pytest.mark.parametrize('name', GOLDEN)
def test_golden_sections(name):
    text, expected = GOLDEN[name]
    assert {k: v for k, v in parse_sections(text).items() if v} == expected

def test_enough_golden_reports(): assert len(GOLDEN) >= 30

@pytest.mark.parametrize('row', SENTENCES, ids=lambda r: f"{r['sentence']} -> {r['label']}")
def test_sentence(row):
    assert label_report(row['sentence'])[row['label']] == (int(row['expected']) if row['expected'] else None), row['why']

def test_enough_sentences():
    assert len({r['sentence'] for r in SENTENCES}) >= 150
    assert {r['label'] for r in SENTENCES} == set(LABELS)

@pytest.mark.parametrize('value', [None, float('nan'), 3, b'text', ['text']])
@pytest.mark.parametrize('function', [label_report, label_mentions, report_findings, parse_sections, clean_report, strip_phi])
def test_no_text(function, value):
    with pytest.raises(TypeError, match='a report must be a str, not'): function(value)

@pytest.mark.parametrize('text', ['', ' ', '\n\n', '___', '...', 'XXXX', '1. 2. 3.', ':', 'IMPRESSION:', 'FINDINGS', '\x00', 'ИМПРЕССИЯ', 'İ' * 50])
def test_nothing_said(text):
    assert set(label_report(text).values()) == {None} and list(label_report(text)) == list(LABELS)
    assert report_findings(text) == label_mentions(text) == []

def test_long_text_is_linear():
    text = 'No effusion, ' * 20_000 + 'and (' * 2000 + 'left ' * 2000
    assert label_report(text)['Pneumonia'] is None and len(label_mentions(text)) > 19_000

def test_mentions_point_into_the_report():
    text = 'INDICATION: effusion?\r\n\r\nFINDINGS:  A small  left\r\n pleural   effusion.\nIMPRESSION: 1. Effusion.  2. No PNEUMOTHORAX!'
    mentions = label_mentions(text)
    assert [text[m.start:m.end] for m in mentions] == [m.text for m in mentions] == ['pleural   effusion', 'Effusion', 'PNEUMOTHORAX']
    assert [m.cue for m in mentions] == ['', '', 'no']

FACTS = {
    'Small left effusion.': Finding('Pleural Effusion', 1, 'left', None, 'mild'),
    'Trace bilateral pleural effusions.': Finding('Pleural Effusion', 1, 'bilateral', None, 'trace'),
    'Effusion on both sides, right greater than left.': Finding('Pleural Effusion', 1, 'bilateral'),
    'There is consolidation in the right lower lobe.': Finding('Consolidation', 1, 'right', 'lower'),
    'Worsening consolidation at the left base.': Finding('Consolidation', 1, 'left', 'basal', None, 'worse'),
    'Severe cardiomegaly, unchanged.': Finding('Cardiomegaly', 1, None, None, 'severe', 'unchanged'),
    'The heart is moderately enlarged.': Finding('Cardiomegaly', 1, None, None, 'moderate'),
    'New right apical pneumothorax.': Finding('Pneumothorax', 1, 'right', 'apical', None, 'new'),
    'No left pneumothorax.': Finding('Pneumothorax', 0, 'left'),
    'The right pneumothorax has resolved.': Finding('Pneumothorax', 0, 'right', None, None, 'resolved'),
    'Possible nodule in the left upper lobe.': Finding('Lung Lesion', -1, 'left', 'upper'),
    'Biapical pleural thickening.': Finding('Pleural Other', 1, 'bilateral', 'apical'),
    'The effusion is large.': Finding('Pleural Effusion', 1, None, None, 'severe'),
    'Left effusion has decreased.': Finding('Pleural Effusion', 1, 'left', None, None, 'better'),
    'No large effusion.': Finding('Pleural Effusion', 0)}

@pytest.mark.parametrize('text', FACTS)
def test_facts(text): assert report_findings(text)[0] == FACTS[text]

def test_sides_stay_apart():
    found = report_findings('Small left effusion and moderate right pneumothorax. Large right effusion.')
    assert [(f.label, f.side, f.severity) for f in found] == [
        ('Pleural Effusion', 'left', 'mild'), ('Pneumothorax', 'right', 'moderate'), ('Pleural Effusion', 'right', 'severe')]

PHI_CASES = {
    'Seen by Dr. Adams.': dict(name=1), 'Discussed with Dr. J. Adams and Mrs. Bell.': dict(name=2), 'Read by Ann B. Cole, MD.': dict(name=1),
    'MRN: 1234567': dict(record=1), 'Accession AB1234567': dict(record=1), 'Call 555-010-0199.': dict(phone=1),
    'Pager 12345.': dict(phone=1), 'mail to a.b@clinic.example now': dict(email=1), 'On 2019-03-14 and 3/14/19.': dict(date=2),
    'Film of March 3rd, 2019.': dict(date=1), '3 Mar 2019': dict(date=1), 'since 03/2019': dict(date=1), 'at 10:35 am': dict(time=1),
    'A 91 year old woman.': dict(age=1), '103-year-old man': dict(age=1), '92 y/o': dict(age=1), '___ year old': dict(mark=1),
    '[**Hospital1**] and [**2019-1-1**]': dict(mark=2), 'The XXXX is XXXX.': dict(mark=2)}
HARMLESS = ['T12', '2.5 cm', '5 mm', 'C5-6', '1.2 x 3.4 x 5 cm', '16.2/24.7', '4-6 weeks', '85 year old', 'ribs 7/8', '35 degrees',
            '1. Effusion. 2. Edema.', 'L1/2', 'tip 4.7 cm above the carina', 'grade 3/4', 'may be', 'in may be seen', 'CT 3 months', '50%']

@pytest.mark.parametrize('text', PHI_CASES)
def test_phi_is_counted(text):
    clean, counts = strip_phi(text)
    assert counts == PHI_CASES[text]
    assert strip_phi(clean)[1] == {}

@pytest.mark.parametrize('text', HARMLESS)
def test_medicine_survives(text): assert strip_phi(text) == (text, {})

def test_clean_report():
    text = 'FINDINGS:  Clear &amp; normal\r\n lungs. Dr. Low was notified at 3 pm.\r\n_____\r\nIMPRESSION:\r\n 1. A, see\r\n above.\r\n 2. B.'
    clean = clean_report(text)
    assert 'Low' not in clean and 'notified' not in clean and '__' not in clean and '\r' not in clean
    assert 'Clear & normal lungs.' in clean and '1. A, see above.' in clean and clean_report(clean) == clean
    assert clean_report('IMPRESSION:\n1. Heart is normal.\n2. No edema. 3. Clear.') == 'IMPRESSION:\n1. Heart is normal.\n2. No edema. 3. Clear.'
    assert clean_report('Clear.\nElectronically signed by me.\nNo edema.') == 'Clear. No edema.'
    assert label_report('No effusion. Images personally reviewed by me.') == label_report(clean_report('No effusion.'))

def test_split_sentences():
    text = 'Nodule of 2.5 cm. See T4 vs. T5, e.g. here. 1. First\n2. Second\n- third wrapped\nline.Fourth'
    assert [text[a:b].strip() for a, b in split_sentences(text)] == [
        'Nodule of 2.5 cm.', 'See T4 vs. T5, e.g. here.', '1. First', '2. Second', '- third wrapped\nline.', 'Fourth']

def _number(cell): return int(float(cell)) if cell else None

def test_chexpert_samples():
    "The four sample reports of chexpert-labeler (MIT), kept out of this repository."
    root = os.environ.get('CXR_EXPLAIN_DATA')
    path = Path(root or '.')/'openi'/'chexpert_labeler'/'labeled_reports.csv'
    if not root or not path.is_file(): pytest.skip(f'chexpert-labeler samples not found: set CXR_EXPLAIN_DATA to the data folder ({path})')
    with open(path, encoding='utf-8', newline='') as file: rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows: assert label_report(row['Reports']) == {label: _number(row[label]) for label in LABELS}
