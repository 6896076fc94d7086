"""Damaged, foreign and hostile files: a named error or a whole image, never another exception, never half a picture."""
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cxr_explain import images
from cxr_explain.images import ImageError, fit, read_fit, read_image, read_small, write_dicom

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')  # pydicom's remarks on the damage

SYNTAXES = ('ExplicitVRLittleEndian', 'ImplicitVRLittleEndian', 'DeflatedExplicitVRLittleEndian', 'RLELossless',
            'JPEGLSLossless', 'JPEG2000Lossless')
FULL = dict(WindowCenter=2048, WindowWidth=4096)


def picture(height=200, width=160):
    "A smooth 12-bit picture without black or white areas, with some grain."
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).normal(0, 20, (height, width))
    return np.clip(2000 + 1200*np.sin(x/23)*np.cos(y/31) + grain, 1, 4094).astype(np.uint16)


STORED = picture()
UNIT = STORED/np.float32(4095)


def encoded(kind, **options):
    out = io.BytesIO()
    Image.fromarray(np.rint(UNIT*255).astype(np.uint8)).save(out, kind, **options)
    return out.getvalue()


def refused(path, *kinds):
    "Both ways of reading refuse the file with the same kind of error, which names the file."
    for read in (read_image, lambda p: read_fit(p, 32)):
        with pytest.raises(ImageError) as e: read(path)
        assert not kinds or type(e.value) in kinds, e.value
        assert str(path) in str(e.value)
        assert pickle.loads(pickle.dumps(e.value)).args == e.value.args  # crosses process pools


def whole_or_refused(path, tolerance):
    "The whole picture within the tolerance, or a named error, at full and at cache size; returns whether it was read."
    read = []
    for f, want in ((read_image, UNIT), (lambda p: read_fit(p, 64)[0], fit(UNIT, 64)[0])):
        try: img = f(path)
        except ImageError: continue
        assert np.abs(img - want).mean() < tolerance, f'{path}: a damaged picture passed'
        read.append(f)
    return len(read) == 2


@pytest.mark.parametrize('kind, options', [('PNG', {}), ('JPEG', {'quality': 90}), ('JPEG', {'progressive': True})])
def test_cut_pictures(tmp_path, kind, options):
    data, path = encoded(kind, **options), tmp_path/'cut.img'
    lengths = {*range(1, 40), *np.linspace(40, len(data) - 1, 60).astype(int), *range(len(data) - 20, len(data))}
    for n in sorted(lengths):
        path.write_bytes(data[:n])
        whole_or_refused(path, 0.01)
    path.write_bytes(data[:len(data)*2//3])
    refused(path)
    path.write_bytes(data)
    assert whole_or_refused(path, 0.01)


@pytest.mark.parametrize('syntax', SYNTAXES)
def test_cut_dicom(tmp_path, syntax):
    data = write_dicom(tmp_path/'a.dcm', STORED, syntax=syntax, **FULL).read_bytes()
    path = tmp_path/'cut.dcm'
    lengths = {*range(1, 400, 13), *np.linspace(400, len(data) - 1, 40).astype(int), *range(len(data) - 12, len(data))}
    for n in sorted(lengths):
        path.write_bytes(data[:n])
        whole_or_refused(path, 0.01)
    path.write_bytes(data[:len(data)*2//3])
    refused(path)
    path.write_bytes(data)
    assert whole_or_refused(path, 1e-4)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', *(f'{s}.dcm' for s in SYNTAXES)])
def test_flipped_bytes(tmp_path, name):
    "Random damage: the picture may change where no checksum guards it, but only named errors come out."
    path = tmp_path/name
    if name.endswith('dcm'): data = write_dicom(path, STORED, syntax=name[:-4], **FULL).read_bytes()
    else: data = encoded('PNG' if name.endswith('png') else 'JPEG')
    rng = np.random.default_rng(1)
    for i in range(60):
        bad = bytearray(data)
        end = len(bad) if i % 2 else min(len(bad), 700)  # every other time the headers
        for at in rng.integers(0, end, 3): bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try: img = read_image(path)
        except ImageError: continue
        images.check_image(img)


def test_png_damage_is_always_seen(tmp_path):
    data, path, rng = encoded('PNG'), tmp_path/'a.png', np.random.default_rng(2)
    for at in rng.integers(60, len(data) - 20, 40):
        bad = bytearray(data); bad[at] ^= 0x10
        path.write_bytes(bad)
        refused(path)


def test_jpeg_closed_after_a_cut(tmp_path):
    "libjpeg pads and says nothing; the flat end gives it away."
    data, path = encoded('JPEG', quality=90), tmp_path/'closed.jpg'
    for share in (0.2, 0.5, 0.8):
        path.write_bytes(data[:int(len(data)*share)] + b'\xff\xd9')
        refused(path, images.TruncatedImage)


@pytest.mark.parametrize('content, kind', [
    (b'', images.EmptyFile), (b'not a picture\n', images.UnknownFormat), (b'<html>', images.UnknownFormat),
    (b'GIF89a' + b'\0'*90, images.UnknownFormat), (b'\0'*4096, images.UnknownFormat),
    (b'\x89PNG\r\n\x1a\n', None), (b'\xff\xd8\xff', None), (b'\0'*128 + b'DICM', None), (b'\x08\0\x05\0CS', None)])
def test_other_bytes(tmp_path, content, kind):
    for name in ('a.jpg', 'a.png', 'a.dcm'):
        (tmp_path/name).write_bytes(content)
        refused(tmp_path/name, *([kind] if kind else []))


def test_no_file(tmp_path):
    with pytest.raises(images.MissingImage): read_image(tmp_path/'lost.png')
    with pytest.raises(FileNotFoundError): read_image(tmp_path/'lost.png')
    with pytest.raises(images.MissingImage): read_image(tmp_path)


def test_foreign_pictures(tmp_path):
    path, (y, x) = tmp_path/'a.png', np.mgrid[:64, :64]
    hues = np.stack([4*x, 4*y, 255 - 4*x], 2).astype(np.uint8)
    photo = Image.fromarray(hues)
    for im, kind in [(photo, images.ColourImage), (photo.convert('P'), images.ColourImage),
                     (Image.new('L', (1, 1)), images.TooSmall), (Image.new('L', (15, 400)), images.TooSmall),
                     (Image.new('L', (64, 64), 77), images.ConstantImage),
                     (Image.new('I;16', (64, 64)), images.ConstantImage),
                     (Image.fromarray(x > 20), images.NotRadiograph),
                     (Image.new('1', (8001, 8000)), images.TooLarge)]:
        im.save(path); refused(path, kind)
    photo.save(tmp_path/'a.jpg', quality=95); refused(tmp_path/'a.jpg', images.ColourImage)
    photo.convert('CMYK').save(tmp_path/'a.jpg'); refused(tmp_path/'a.jpg', images.ColourImage)


def test_small_coloured_mark_is_gray(tmp_path):
    rgb = np.repeat(np.rint(UNIT*255).astype(np.uint8)[..., None], 3, 2)
    rgb[:10, :10] = 255, 0, 0
    Image.fromarray(rgb).save(tmp_path/'a.png')
    assert np.abs(read_image(tmp_path/'a.png') - UNIT)[20:].max() < 0.003


def test_png_that_claims_to_be_huge(tmp_path):
    "A bomb: a header of 50,000 x 50,000 pixels must be refused before a byte is unpacked."
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack('>IIBBBBB', 50_000, 50_000, 8, 0, 0, 0, 0)
    body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(1 << 20))) + chunk(b'IEND', b'')
    (tmp_path/'a.png').write_bytes(b'\x89PNG\r\n\x1a\n' + body); refused(tmp_path/'a.png', images.TooLarge)


@pytest.mark.parametrize('orientation', [2, 4, 5, 7])
def test_mirrored(tmp_path, orientation):
    exif = Image.Exif(); exif[0x0112] = orientation
    Image.fromarray(np.rint(UNIT*255).astype(np.uint8)).save(tmp_path/'a.jpg', exif=exif)
    refused(tmp_path/'a.jpg', images.MirroredImage)


def test_foreign_dicom(tmp_path):
    path = tmp_path/'a.dcm'
    for tags, kind in [(dict(Modality='CT'), images.NotRadiograph), (dict(Modality='US'), images.NotRadiograph),
                       (dict(NumberOfFrames=2), images.NotRadiograph),
                       (dict(Rows=1, Columns=1), images.TooSmall),
                       (dict(Rows=60000, Columns=60000), images.TooLarge), (dict(Rows=201), images.TruncatedImage),
                       (dict(RescaleSlope='nan', RescaleIntercept=0), images.NonFinite),
                       (dict(RescaleSlope='inf', RescaleIntercept=0), images.NonFinite),
                       (dict(BitsAllocated=12), images.CorruptImage), (dict(SamplesPerPixel=3), None),
                       (dict(WindowCenter=1e9, WindowWidth=2), images.ConstantImage)]:
        write_dicom(path, STORED, **FULL | tags)
        refused(path, *([kind] if kind else []))
    write_dicom(path, STORED*0, **FULL); refused(path, images.ConstantImage)
    write_dicom(path, STORED*0); refused(path, images.ConstantImage)


@pytest.mark.parametrize('syntax', ['RLELossless', 'JPEGLSLossless', 'JPEG2000Lossless', 'JPEGBaseline8Bit'])
def test_stream_cut_inside_a_sound_dicom(tmp_path, syntax):
    "Header and lengths are fine, only the compressed stream ends early, as after an aborted transfer."
    import pydicom
    if syntax == 'JPEGBaseline8Bit':
        ds = pydicom.dcmread(write_dicom(tmp_path/'a.dcm', np.rint(UNIT*255).astype(np.uint8), bits=8))
        ds.file_meta.TransferSyntaxUID, stream = getattr(pydicom.uid, syntax), encoded('JPEG')
    else:
        ds = pydicom.dcmread(write_dicom(tmp_path/'a.dcm', STORED, syntax=syntax, **FULL))
        stream = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
    for share, end in [(s, e) for s in (0.02, 0.3, 0.6, 0.9) for e in (b'', b'\xff\xd9')] + [(0.98, b'')]:
        ds.PixelData = pydicom.encaps.encapsulate([stream[:int(len(stream)*share)] + end])
        ds['PixelData'].is_undefined_length = True
        ds.save_as(tmp_path/'b.dcm'); refused(tmp_path/'b.dcm')


def test_text_instead_of_pixels(tmp_path):
    import pydicom
    ds = pydicom.dcmread(write_dicom(tmp_path/'a.dcm', STORED)); del ds.PixelData
    ds.save_as(tmp_path/'b.dcm'); refused(tmp_path/'b.dcm', images.TruncatedImage)


def test_missing_decoder(tmp_path, monkeypatch):
    import sys
    write_dicom(tmp_path/'a.dcm', STORED)
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    with pytest.raises(images.MissingDecoder, match=r'pip install "cxr_explain\[dicom\]"'): read_image(tmp_path/'a.dcm')


def test_lossless_jpeg_is_refused_with_advice(tmp_path):
    import pydicom
    ds = pydicom.dcmread(write_dicom(tmp_path/'a.dcm', STORED))
    ds.PixelData = pydicom.encaps.encapsulate([b'\xff\xd8\xff\xd9'])
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1; ds['PixelData'].is_undefined_length = True
    ds.save_as(tmp_path/'b.dcm'); refused(tmp_path/'b.dcm', images.MissingDecoder)


def test_arrays():
    good = UNIT.copy()
    wrong = good*2, good - 1, good.astype(float), [[1]], None
    for bad in (good*np.nan, good + np.inf, good*0, good[:4], good[None], *wrong):
        with pytest.raises(ImageError): images.check_image(bad)
    for bad in (good*np.nan, good + np.inf, good*0, good[:4], good[None], np.zeros(5)):
        with pytest.raises(ImageError): images.as_image(bad)


def test_cache_size_stays_valid(tmp_path):
    Image.fromarray(np.rint(UNIT*255).astype(np.uint8)).save(tmp_path/'a.jpg')
    for px in (1, 16, 33, 160, 400): assert max(read_small(tmp_path/'a.jpg', px).shape) == px
