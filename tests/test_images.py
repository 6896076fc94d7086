"""Checks of chapter images that teach little: windows, padding, fits, EXIF, and de-identification in its corners."""
import io
import traceback

import numpy as np
import pydicom
import pytest
from PIL import Image
from test_images_bad_input import FULL, STORED, UNIT

from cxr_explain import images
from cxr_explain.images import as_image, deidentify, fit, fit_mask, read_fit, read_image, read_small, unfit, write_dicom

KEY = b'sixteen bytes or more'
EIGHT = Image.fromarray(np.rint(UNIT*255).astype(np.uint8))


def near(a, b, eps): assert np.abs(np.asarray(a) - b).max() < eps


def lut_sequence(table):
    item = pydicom.Dataset(); item.LUTDescriptor = [len(table), 0, 16]
    item.add_new('LUTData', 'OW', np.asarray(table, '<u2').tobytes()); item.LUTExplanation = 'ZQXDOE'
    return pydicom.Sequence([item])


def test_window_equals_pydicoms(tmp_path):
    for shape in ('LINEAR', 'LINEAR_EXACT', 'SIGMOID'):
        path = write_dicom(tmp_path/'a.dcm', STORED, WindowCenter=[1500, 1], WindowWidth=[900, 2], VOILUTFunction=shape)
        near(read_image(path), pydicom.pixels.apply_windowing(STORED, pydicom.dcmread(path))/4095, 1e-5)


def test_voi_lut_comes_before_the_window(tmp_path):
    seq = lut_sequence(np.minimum(2*np.arange(4096), 4095))
    path = write_dicom(tmp_path/'a.dcm', STORED, VOILUTSequence=seq, **FULL)
    near(read_image(path), np.minimum(2*UNIT, 1), 1e-3)


def test_modality_lut(tmp_path):
    seq = lut_sequence(4095 - np.arange(4096))
    near(read_image(write_dicom(tmp_path/'a.dcm', STORED, ModalityLUTSequence=seq, **FULL)), 1 - UNIT, 1e-5)


def test_padding_is_black_and_moves_nothing(tmp_path):
    padded = STORED.copy(); padded[:40] = 4095
    for kind in ('MONOCHROME1', 'MONOCHROME2'):
        tags = dict(PixelPaddingValue=4095, PhotometricInterpretation=kind)
        img = read_image(write_dicom(tmp_path/'a.dcm', padded, **tags))
        assert img[:40].max() == 0
        rest = as_image(STORED[40:]); near(img[40:], 1 - rest if kind == 'MONOCHROME1' else rest, 1e-5)


def test_unused_bits_do_not_show(tmp_path):
    for stored in (STORED, STORED.astype(np.int16) - 2048):
        path = write_dicom(tmp_path/'a.dcm', stored, WindowCenter=2048 if stored is STORED else 0, WindowWidth=4096)
        ds = pydicom.dcmread(path); raw = ds.pixel_array.view(np.uint16)
        ds.PixelData = (raw ^ 0x5000).tobytes(); ds.save_as(tmp_path/'b.dcm')
        assert np.array_equal(read_image(tmp_path/'b.dcm'), read_image(path))


def test_window_argument(tmp_path):
    path = write_dicom(tmp_path/'a.dcm', STORED, **FULL)
    near(read_image(path, window='minmax'), as_image(STORED, STORED.min(), STORED.max()), 1e-6)
    near(read_image(path, window='percentile'), as_image(STORED), 1e-6)
    with pytest.raises(ValueError, match='minmax'): read_image(path, window='lung')
    for steps in (('sharpen',), 'clahe'):
        with pytest.raises(ValueError, match='clahe'): read_image(path, preprocess=steps)


def test_file_without_preamble(tmp_path):
    data = write_dicom(tmp_path/'a.dcm', STORED, **FULL).read_bytes()
    (tmp_path/'b.dcm').write_bytes(data[132:]); near(read_image(tmp_path/'b.dcm'), UNIT, 1e-5)


def test_fit_mask_and_unfit():
    img, p = fit(UNIT, 64)
    assert unfit(img, p).shape == UNIT.shape and np.abs(unfit(img, p) - UNIT).mean() < 0.05
    assert abs(fit_mask(UNIT > 0.5, p).sum()/(UNIT > 0.5).sum() - (64/200)**2) < 0.01
    near(unfit(np.ones((64, 64)), p), 1, 1e-6)


@pytest.mark.parametrize('shape', [(200, 160), (161, 333), (1001, 777), (64, 900)])
def test_reduced_reading_is_aligned(tmp_path, shape):
    "The reduced picture lies where the full one would, also when libjpeg rounds its size up."
    y, x = np.mgrid[:shape[0], :shape[1]]
    smooth = 0.5 + 0.4*np.sin(x/shape[1]*9)*np.cos(y/shape[0]*7)
    Image.fromarray(np.rint(smooth*255).astype(np.uint8)).save(tmp_path/'a.jpg', quality=98)
    for px in (24, 48, 64, 100):
        (a, p), (b, q) = read_fit(tmp_path/'a.jpg', px), fit(read_image(tmp_path/'a.jpg'), px)
        assert p == q and np.abs(a - b).mean() < 0.01
        inside = read_small(tmp_path/'a.jpg', px)
        assert max(inside.shape) == px and np.array_equal(fit(inside, px)[0], a)


def test_reduced_reading_is_never_below_the_target(tmp_path, monkeypatch):
    EIGHT.resize((1600, 2000)).save(tmp_path/'a.jpg')
    for px in (100, 249, 250, 251, 500, 999, 1001, 2000, 3000):
        im, full = images._decode(tmp_path/'a.jpg', 'jpeg', px)
        assert im.height >= min(px, 2000) and full == (2000, 1600)


@pytest.mark.parametrize('orientation', [3, 6, 8])
def test_exif_rotation_is_applied(tmp_path, orientation):
    exif = Image.Exif(); exif[0x0112] = orientation
    EIGHT.save(tmp_path/'a.jpg', exif=exif, quality=98)
    img = read_image(tmp_path/'a.jpg')
    near(img, np.rot90(UNIT, {3: 2, 6: 3, 8: 1}[orientation]), 0.05)
    (a, p), (b, q) = read_fit(tmp_path/'a.jpg', 64), fit(img, 64)
    assert p == q; near(a, b, 1e-6)


def test_deidentified_file(tmp_path):
    ds = pydicom.dcmread(write_dicom(tmp_path/'a.dcm', STORED, VOILUTSequence=lut_sequence(range(4096))))
    ds.PatientID, ds.PatientName, ds.PatientAge, ds.StudyDate = '4711', 'ZQXDOE', '095Y', '20200101'
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PixelSpacing = '1.2.3.4', '1.2.3.4.5', [0.139, 0.139]
    ds.PatientSex = 'F'
    ds.ImageType, ds.BodyPartExamined = ['DERIVED', 'PRIMARY', 'ZQXDOE'], 'ZQXDOE'
    ds.save_as(tmp_path/'ZQXDOE.dcm')
    out = deidentify(tmp_path/'ZQXDOE.dcm', tmp_path/'safe', KEY)
    new, raw = pydicom.dcmread(out), out.read_bytes()
    assert b'ZQXDOE' not in raw and b'4711' not in raw and b'1.2.3.4' not in raw and b'20200101' not in raw
    assert (new.PatientAge, new.PatientSex, list(new.PixelSpacing)) == ('090Y', 'F', [0.139, 0.139])
    assert 'BodyPartExamined' not in new and 'ImageType' not in new and new.preamble == b'\0'*128
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID != '2.25.1'
    assert np.array_equal(read_image(out), read_image(tmp_path/'a.dcm'))
    assert deidentify(tmp_path/'ZQXDOE.dcm', tmp_path/'again', KEY).read_bytes() == raw
    other = pydicom.dcmread(deidentify(tmp_path/'ZQXDOE.dcm', tmp_path/'again', KEY + b'!'))
    assert other.StudyInstanceUID != new.StudyInstanceUID and other.PatientID != new.PatientID
    ds.SOPInstanceUID = '2.25.2'; ds.save_as(tmp_path/'c.dcm')
    sibling = pydicom.dcmread(deidentify(tmp_path/'c.dcm', tmp_path/'sibling', KEY))
    assert sibling.StudyInstanceUID == new.StudyInstanceUID and sibling.PatientID == new.PatientID
    assert sibling.SOPInstanceUID != new.SOPInstanceUID


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_comment_in_a_compressed_stream_is_gone(tmp_path):
    stream = io.BytesIO(); EIGHT.save(stream, 'JPEG', comment=b'ZQXDOE')
    ds = pydicom.dcmread(write_dicom(tmp_path/'a.dcm', np.asarray(EIGHT), bits=8, WindowCenter=128, WindowWidth=256))
    ds.PixelData = pydicom.encaps.encapsulate([stream.getvalue()]); ds['PixelData'].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit; ds.save_as(tmp_path/'b.dcm')
    assert b'ZQXDOE' in (tmp_path/'b.dcm').read_bytes()
    out = deidentify(tmp_path/'b.dcm', tmp_path/'c.dcm', KEY)
    assert b'ZQXDOE' not in out.read_bytes() and np.array_equal(read_image(out), read_image(tmp_path/'b.dcm'))


def test_folder(tmp_path):
    src, dst = tmp_path/'src', tmp_path/'dst'; (src/'deep').mkdir(parents=True)
    write_dicom(src/'ZQXDOE.dcm', STORED, PatientID='1', SOPInstanceUID='2.25.7')
    write_dicom(src/'deep'/'b.dcm', STORED, PatientID='2'); write_dicom(src/'ct.dcm', STORED, Modality='CT')
    (src/'notes.txt').write_text('ZQXDOE')
    with pytest.warns(UserWarning, match='2 of 4 files refused'): done = deidentify(src, dst, KEY)
    names = sorted(type(v).__name__ for v in done.values() if isinstance(v, Exception))
    assert names == ['NotRadiograph', 'UnknownFormat']
    written = sorted(dst.rglob('*.dcm'))
    assert len(written) == 2 and not any('ZQXDOE' in str(p) for p in dst.rglob('*'))


def test_refusals(tmp_path):
    path = write_dicom(tmp_path/'a.dcm', STORED)
    with pytest.raises(ValueError, match='overwrite'): deidentify(path, path, KEY)
    with pytest.raises(ValueError, match='16'): deidentify(path, tmp_path/'b.dcm', b'short')
    EIGHT.save(tmp_path/'a.png')
    with pytest.raises(images.UnknownFormat): deidentify(tmp_path/'a.png', tmp_path/'b.dcm', KEY)
    for tags in (dict(BurnedInAnnotation='YES'), dict(BurnedInAnnotation=None), dict(ConversionType='DI'),
                 dict(ImageType=['DERIVED', 'SECONDARY']), dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.7')):
        with pytest.raises(images.BurnedInText): deidentify(write_dicom(path, STORED, **tags), tmp_path/'b.dcm', KEY)
    assert not (tmp_path/'b.dcm').exists()


NAME = 'ZQXDOE'
SAID = [dict(Modality=NAME), dict(BurnedInAnnotation=NAME), dict(PatientOrientation=[NAME, NAME], Modality='CT'),
        dict(WindowWidth='999999'), dict(NumberOfFrames='999999'), dict()]


@pytest.mark.parametrize('tags', SAID, ids=lambda t: next(iter(t), 'PhotometricInterpretation'))
def test_no_error_repeats_what_the_file_says(tmp_path, tags, recwarn):
    "A name where a code or a number should be; pydicom's own messages would quote it."
    data, path = write_dicom(tmp_path/'a.dcm', STORED, **FULL | tags).read_bytes(), tmp_path/'a.dcm'
    data = data.replace(b'999999', NAME.encode())
    path.write_bytes(data if tags else data.replace(b'MONOCHROME2 ', f'{NAME:<12}'.encode()))
    assert NAME.encode() in path.read_bytes()
    errors = []
    for f in (read_image, lambda p: read_fit(p, 32), lambda p: deidentify(p, tmp_path/'b.dcm', KEY)):
        try: f(path)
        except images.ImageError as e: errors += [str(e), ''.join(traceback.format_exception(e))]
    assert errors and not any(NAME in text for text in errors)
    assert not any(NAME in str(w.message) for w in recwarn)


@pytest.mark.parametrize('view', ['PA', 'AP', None])
@pytest.mark.parametrize('rows, columns, fine', [
    ('L', 'F', True), ('LF', 'FR', True), ('A', 'F', True), ('P', 'F', True), ('', '', True), ('ZQ', 'XD', True),
    ('R', 'F', False), ('L', 'H', False), ('R', 'H', False), ('RH', 'F', False), ('H', 'L', False), ('F', 'L', False),
    ('P', 'H', False)])
def test_orientation_of_a_film(tmp_path, view, rows, columns, fine):
    path = write_dicom(tmp_path/'a.dcm', STORED, PatientOrientation=[rows, columns], ViewPosition=view, **FULL)
    if fine: assert np.array_equal(read_image(path), read_image(write_dicom(tmp_path/'b.dcm', STORED, **FULL)))
    else:
        with pytest.raises(images.MirroredImage, match='a.dcm: PatientOrientation .*check the sides'): read_image(path)
        with pytest.raises(images.MirroredImage): deidentify(path, tmp_path/'c.dcm', KEY)


def test_palette_is_refused(tmp_path):
    for kind in ('PALETTE COLOR', 'CMYK'):
        path = write_dicom(tmp_path/'a.dcm', np.rint(UNIT*255).astype(np.uint8), bits=8)
        ds = pydicom.dcmread(path); ds.PhotometricInterpretation = kind
        for name in ('Red', 'Green', 'Blue'):
            ds.add_new(f'{name}PaletteColorLookupTableDescriptor', 'US', [256, 0, 16])
            ds.add_new(f'{name}PaletteColorLookupTableData', 'OW', np.arange(256, dtype='<u2').tobytes())
        ds.save_as(path)
        for f in (read_image, lambda p: read_fit(p, 32)):
            with pytest.raises(images.ColourImage, match=kind): f(path)


def test_folder_loses_and_overwrites_nothing(tmp_path):
    src, dst = tmp_path/'src', tmp_path/'dst'; src.mkdir()
    same = dict(PatientID='1', SOPInstanceUID='2.25.7')
    write_dicom(src/'a.dcm', STORED, **same); write_dicom(src/'b.dcm', STORED[::-1].copy(), **same)
    (src/'copy.dcm').write_bytes((src/'a.dcm').read_bytes())
    ds = pydicom.dcmread(write_dicom(src/'c.dcm', STORED, PatientID='1')); del ds.SOPInstanceUID
    ds.save_as(src/'c.dcm', enforce_file_format=False)
    write_dicom(src/'d.dcm', STORED, PatientID='1', SOPInstanceUID='2.25.8')
    with pytest.warns(UserWarning, match='2 of 5 files refused'): done = deidentify(src, dst, KEY)
    kinds = {p.name: type(v).__name__ for p, v in done.items()}
    assert kinds['b.dcm'] == 'DoubledInstance' and kinds['c.dcm'] == 'CorruptImage', kinds
    assert 'SOPInstanceUID' in str(done[src/'c.dcm']) and done[src/'copy.dcm'] == done[src/'a.dcm']
    assert np.array_equal(read_image(done[src/'a.dcm']), read_image(src/'a.dcm'))
    first = {p: p.read_bytes() for p in dst.rglob('*.dcm')}
    assert len(first) == 2
    with pytest.warns(UserWarning, match='2 of 5'): deidentify(src, dst, KEY)
    assert {p: p.read_bytes() for p in dst.rglob('*.dcm')} == first
